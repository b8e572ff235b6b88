"""Generation with the Flax models: padding, programs, options."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptrio
from tests.flax_models import flax_model, padding, token_ids

OPTIONS = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0}


LANGUAGE_MODELS = ["FlaxGPT2LMHeadModel", "FlaxGPTNeoForCausalLM", "FlaxGPTNeoXForCausalLM"]


@pytest.fixture(scope="module")
def model() -> Any:
    return flax_model("FlaxGPTNeoForCausalLM", num_layers=2, attention_types=[[["global", "local"], 1]])


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The programs that JAX compiles meanwhile."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]  # a plain handler
    logger = logging.getLogger("jax")
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
        found[:] = [message for message in found if message.startswith("Compiling")]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("class_name", LANGUAGE_MODELS)
def test_a_padded_row_equals_the_row_alone(class_name: str, side: str) -> None:
    model, ids, mask = flax_model(class_name), token_ids(), padding(side)
    batch = np.asarray(model.generate(ids, attention_mask=mask, **OPTIONS).sequences)
    np.testing.assert_array_equal(batch[:, : ids.shape[1]], ids)
    for row, real in enumerate(mask == 1):
        alone = np.asarray(model.generate(ids[row : row + 1, real], **OPTIONS).sequences)
        np.testing.assert_array_equal(batch[row, ids.shape[1] :], alone[0, real.sum() :])


def test_every_token_is_the_likeliest_after_those_before(model: Any) -> None:
    ids = token_ids()
    result = np.asarray(model.generate(ids, **OPTIONS).sequences)
    logits = np.asarray(model(result[:, :-1]).logits)
    np.testing.assert_array_equal(result[:, ids.shape[1] :], logits[:, ids.shape[1] - 1 :].argmax(-1))


def test_prompts_of_one_bucket_share_their_programs(model: Any) -> None:
    ids = np.random.default_rng(0).integers(1, 59, (2, 16))
    model.generate(ids, **OPTIONS)
    with compilations() as programs:
        for length in range(1, 17):
            model.generate(ids[:, :length], **OPTIONS | {"max_new_tokens": 3 + length % 5})
    assert programs == []
    with compilations() as programs:
        model.generate(ids[:, :15], **OPTIONS, buckets=(20, 60))
    assert len(programs) == 2


def test_the_loop_under_jit_and_uncompiled(model: Any) -> None:
    ids, mask = token_ids(), padding("right")
    expected = np.asarray(model.generate(ids, attention_mask=mask, **OPTIONS).sequences)
    jitted = jax.jit(lambda params, ids, mask: model.generate(ids, params=params, attention_mask=mask, **OPTIONS))
    np.testing.assert_array_equal(jitted(model.params, jnp.asarray(ids), jnp.asarray(mask)).sequences, expected)
    one = {**OPTIONS, "max_new_tokens": 1}
    np.testing.assert_array_equal(
        model.generate(ids, attention_mask=mask, trace=False, **one).sequences, expected[:, : ids.shape[1] + 1]
    )


def test_several_tokens_end_a_row(model: Any) -> None:
    ids = token_ids()
    free = np.asarray(model.generate(ids, **OPTIONS).sequences)[:, ids.shape[1] :]
    ends = [int(free[0, 3]), int(free[1, 5])]
    held = np.asarray(model.generate(ids, **OPTIONS | {"eos_token_id": ends}).sequences)[:, ids.shape[1] :]
    for row, expected in zip(held, free, strict=True):
        last = next(place for place, token in enumerate(expected) if token in ends)
        np.testing.assert_array_equal(row[: last + 1], expected[: last + 1])
        assert (row[last + 1 :] == 0).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_new_token": 3}, gptrio.OptionError, "max_new_tokens"),
        ({"atention_mask": 3}, gptrio.OptionError, "attention_mask"),
        ({"repetition_penalty": 1.5}, gptrio.UnsupportedError, "repetition_penalty"),
        ({"do_sample": True, "num_beams": 2}, gptrio.UnsupportedError, "beam_sample"),
        ({"max_length": 11}, gptrio.OptionError, "max_new_tokens"),
        ({"max_new_tokens": 100}, gptrio.OptionError, "max_new_tokens="),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, gptrio.OptionError, "lower the minimum"),
        ({"max_new_tokens": 3, "buckets": ()}, gptrio.OptionError, "buckets"),
        ({"max_new_tokens": 3, "attention_mask": np.ones((2, 3))}, gptrio.InputError, "attention_mask"),
    ],
)
def test_bad_options(model: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.generate(token_ids(), **options)


def test_bad_ids(model: Any) -> None:
    with pytest.raises(gptrio.TokenIdError, match="61"):
        model.generate([[3, 61]], max_new_tokens=2)
    with pytest.raises(gptrio.InputError, match="input_ids"):
        model.generate([3, 4], max_new_tokens=2)
    backbone = gptrio.FlaxGPTNeoModel(model.config)
    with pytest.raises(gptrio.UnsupportedError, match="FlaxAutoModelForCausalLM"):
        backbone.generate([[3, 4]])


def test_no_torch_after_loading_and_generating(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    code = f"""
import sys
from gptrio import FlaxAutoModelForCausalLM
model = FlaxAutoModelForCausalLM.from_pretrained({str(tmp_path)!r})
print(model.generate([[3, 4]], max_new_tokens=2, eos_token_id=None).sequences.shape, "torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "(1, 4) False"
