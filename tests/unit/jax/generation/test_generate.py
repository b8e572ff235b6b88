"""Generation with the Flax models: padding, programs, options."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

import gptrio
from tests.cases import first
from tests.flax_models import flax_model, padding, positions_of, token_ids

OPTIONS = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0}


LANGUAGE_MODELS = ["FlaxGPTNeoForCausalLM", "FlaxGPT2LMHeadModel", "FlaxGPTNeoXForCausalLM"]


@pytest.fixture(scope="module")
def model() -> Any:
    return flax_model("FlaxGPTNeoForCausalLM")


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


@pytest.mark.parametrize("side", first(["left", "right"]))
@pytest.mark.parametrize("class_name", first(LANGUAGE_MODELS))  # generation knows no family; the others: parity tests
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


def test_sampled_copies_are_those_of_a_prompt_that_is_repeated(model: Any) -> None:
    options = {**OPTIONS, "do_sample": True, "top_k": 30, "prng_key": jax.random.PRNGKey(3)}
    ids, mask = token_ids(), padding("left")
    copies = np.asarray(model.generate(ids, attention_mask=mask, num_return_sequences=2, **options).sequences)
    rows = model.generate(ids.repeat(2, axis=0), attention_mask=mask.repeat(2, axis=0), **options).sequences
    np.testing.assert_array_equal(copies, rows)
    assert (copies[0] != copies[1]).any()
    assert (copies[2] != copies[3]).any()


@pytest.mark.parametrize("name", first(["bfloat16", "float16"]))
def test_half_precision_chooses_tokens_that_are_nearly_the_likeliest(model: Any, name: str) -> None:
    params = {"float16": model.to_fp16, "bfloat16": model.to_bf16}[name](model.params)
    half = type(model)(model.config, dtype=jnp.dtype(name), _do_init=False)
    ids, mask = token_ids(), padding("left")
    out = np.asarray(half.generate(ids, params=params, attention_mask=mask, **OPTIONS).sequences)
    whole = np.concatenate([mask, np.ones((2, 12), np.int32)], axis=1)
    logits = np.asarray(model(out, whole, positions_of(whole), params=model.to_fp32(params)).logits)[:, 10:-1]
    chosen = np.take_along_axis(logits, out[:, 11:, None], axis=-1)[..., 0]
    assert (chosen >= logits.max(-1) - 0.02 * np.abs(logits).max()).all()
    assert len(np.unique(out[:, 11:])) > 5


class Without(gptrio.FlaxLogitsProcessor):
    """A processor of one's own, which forbids a token."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Any, scores: Any, cur_len: Any) -> Any:
        return scores.at[:, self.token].set(-jnp.inf)


def test_processors_of_ones_own_are_part_of_the_loop(model: Any) -> None:
    free = np.asarray(model.generate(token_ids(), **OPTIONS).sequences)[:, 11:]
    token = int(np.bincount(free.ravel()).argmax())
    expected = model.generate(token_ids(), suppress_tokens=[token], **OPTIONS).sequences
    own = gptrio.FlaxLogitsProcessorList([Without(token)])
    actual = np.asarray(model.generate(token_ids(), logits_processor=own, **OPTIONS).sequences)
    np.testing.assert_array_equal(actual, expected)
    assert token not in actual[:, 11:]


def test_options_of_pytorch_that_would_change_nothing_are_no_reason_to_refuse(model: Any, tmp_path: Path) -> None:
    neutral = {
        "repetition_penalty": None, "typical_p": 1.0, "epsilon_cutoff": 0.0, "min_p": None, "guidance_scale": 1.0,
        "penalty_alpha": 0, "low_memory": True, "num_assistant_tokens": 5, "cache_implementation": "static",
        "bad_words_ids": None, "renormalize_logits": True, "encoder_repetition_penalty": 1.0,
    }  # fmt: skip
    (tmp_path / "generation_config.json").write_text(json.dumps(neutral))
    config = gptrio.GenerationConfig.from_pretrained(tmp_path)
    expected = model.generate(token_ids(), **OPTIONS).sequences
    np.testing.assert_array_equal(model.generate(token_ids(), config, **OPTIONS).sequences, expected)
    of_sampling = {"min_p": 0.1, "typical_p": 0.9}
    with pytest.warns(gptrio.GptrioWarning, match="no effect: min_p=0.1, typical_p=0.9 without do_sample=True"):
        out = model.generate(token_ids(), **OPTIONS, **of_sampling)
    np.testing.assert_array_equal(out.sequences, expected)
    refused = [{"do_sample": True, **of_sampling}, {"guidance_scale": 1.2}, {"cache_implementation": "quantized"}]
    for changes in [*refused, {"num_beams": 2, "renormalize_logits": True}]:
        with pytest.raises(gptrio.UnsupportedError, match="Flax classes have no option"):
            model.generate(token_ids(), config, **OPTIONS | changes)


@pytest.mark.parametrize("pad", [None, 7])
def test_padding_that_cannot_be_seen_is_warned_of(model: Any, pad: int | None) -> None:
    options = {**OPTIONS, "eos_token_id": [8, 9], "pad_token_id": pad}
    ids = token_ids()
    ids[1, 0] = 8 if pad is None else pad
    with pytest.warns(gptrio.GptrioWarning, match=f"begin or end with token {ids[1, 0]}, the padding token"):
        model.generate(ids, **options)
    model.generate(ids, attention_mask=np.ones_like(ids), **options)


def test_compiled_code_is_kept_in_a_folder(model: Any, tmp_path: Path) -> None:
    hits: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)
    limit = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        for folder in (tmp_path / "first", tmp_path / "second"):
            found = []
            for _ in range(2):  # a new model compiles anew, or finds what is in the folder
                again = type(model)(model.config, _do_init=False)
                found.append(again.generate(token_ids(), params=model.params, compilation_cache=folder, **OPTIONS))
                before, hits[:] = len(hits), []
            assert any(folder.iterdir())
            assert before >= 2  # the program that reads the prompt, and the loop
            np.testing.assert_array_equal(found[0].sequences, found[1].sequences)
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", limit)
        jax.config.update("jax_compilation_cache_dir", None)
        reset_cache()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_new_token": 3}, gptrio.OptionError, "max_new_tokens"),
        ({"atention_mask": 3}, gptrio.OptionError, "attention_mask"),
        ({"guidance_scale": 1.5}, gptrio.UnsupportedError, "guidance_scale"),
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
