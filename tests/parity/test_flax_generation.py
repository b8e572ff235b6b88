"""Generation with the Flax models against Transformers' Flax models, token for token."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from tests.flax_models import flax_pair, padding, token_ids

END, PAD = 59, 0


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return flax_pair("FlaxGPTNeoForCausalLM")


def sequences(pair: tuple[Any, Any], **options: Any) -> list[Any]:
    """Results of the reference and of ours for prompts that are padded on the left."""
    ids, mask = token_ids(), padding("left")
    defaults = {"attention_mask": mask, "max_new_tokens": 12, "eos_token_id": END, "pad_token_id": PAD}
    return [model.generate(ids, **defaults | options) for model in pair]


def test_greedy_search(pair: tuple[Any, Any]) -> None:
    chosen = pair[0].generate(token_ids(), attention_mask=padding("left"), max_new_tokens=12, pad_token_id=PAD)
    end = int(chosen.sequences[0, 15])  # a token that ends one of the rows early
    expected, actual = sequences(pair, eos_token_id=end)
    assert type(actual).__name__ == type(expected).__name__
    np.testing.assert_array_equal(actual.sequences, expected.sequences)
    assert (np.asarray(actual.sequences) == PAD).any()


@pytest.mark.parametrize("seed", [0, 1])
def test_sampling(pair: tuple[Any, Any], seed: int) -> None:
    options = {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 1.3, "prng_key": jax.random.PRNGKey(seed)}
    expected, actual = sequences(pair, **options)
    assert type(actual).__name__ == type(expected).__name__
    np.testing.assert_array_equal(actual.sequences, expected.sequences)


@pytest.mark.parametrize(
    "options",
    [{"num_return_sequences": 2}, {"early_stopping": True, "length_penalty": 0.5}],
    ids=str,
)
def test_beam_search(pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    expected, actual = sequences(pair, num_beams=3, **options)
    assert type(actual).__name__ == type(expected).__name__
    np.testing.assert_array_equal(actual.sequences, expected.sequences)
    np.testing.assert_allclose(actual.scores, expected.scores, rtol=1e-5)
