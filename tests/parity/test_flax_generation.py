"""Generation with the Flax models against Transformers' Flax models, token for token."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.generation import flax_logits_process

import gptrio
from tests.cases import first
from tests.flax_models import VOCABULARY, flax_model, flax_pair, padding, token_ids

END, PAD = 59, 0
ENDING = 52  # a token that greedy search chooses in both rows, at different places


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return flax_pair("FlaxGPTNeoForCausalLM")


def sequences(pair: tuple[Any, Any], **options: Any) -> list[Any]:
    """Results of the reference and of ours for prompts that are padded on the left."""
    ids, mask = token_ids(), padding("left")
    defaults = {"attention_mask": mask, "max_new_tokens": 12, "eos_token_id": END, "pad_token_id": PAD}
    return [model.generate(ids, **defaults | options) for model in pair]


def test_greedy_search(pair: tuple[Any, Any]) -> None:
    expected, actual = sequences(pair, eos_token_id=ENDING)
    assert type(actual).__name__ == type(expected).__name__
    np.testing.assert_array_equal(actual.sequences, expected.sequences)
    assert (np.asarray(actual.sequences) == PAD).any()


@pytest.mark.parametrize("seed", first([0, 1]))
def test_sampling(pair: tuple[Any, Any], seed: int) -> None:
    options = {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 1.3, "prng_key": jax.random.PRNGKey(seed)}
    expected, actual = sequences(pair, **options)
    assert type(actual).__name__ == type(expected).__name__
    np.testing.assert_array_equal(actual.sequences, expected.sequences)


@pytest.mark.parametrize(
    "options",
    first([{"num_return_sequences": 2, "early_stopping": True, "length_penalty": 0.5}, {"num_return_sequences": 1}]),
    ids=str,
)
def test_beam_search(pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    expected, actual = sequences(pair, num_beams=3, **options)
    assert type(actual).__name__ == type(expected).__name__
    ended = np.asarray(expected.scores) > -1e6  # where too few have ended, theirs are zeros and ours the prompt
    assert ended.sum() > 1
    np.testing.assert_array_equal(np.asarray(actual.sequences)[ended], np.asarray(expected.sequences)[ended])
    np.testing.assert_allclose(np.asarray(actual.scores)[ended], np.asarray(expected.scores)[ended], rtol=1e-5)


PROCESSORS = {
    "FlaxTemperatureLogitsWarper": (0.7,),
    "FlaxTopKLogitsWarper": (5,),
    "FlaxTopPLogitsWarper": (0.6,),
    "FlaxForcedBOSTokenLogitsProcessor": (4,),
    "FlaxForcedEOSTokenLogitsProcessor": (8, END),
    "FlaxMinLengthLogitsProcessor": (6, END),
    "FlaxSuppressTokensLogitsProcessor": ([3, 9],),
    "FlaxSuppressTokensAtBeginLogitsProcessor": ([3, 9], 7),
    "FlaxForceTokensLogitsProcessor": ([[7, 5], [8, None]],),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors(name: str) -> None:
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 4, (2, 12)))
    scores = jax.random.normal(jax.random.key(0), (2, VOCABULARY))
    oracle, ours = (getattr(module, name)(*PROCESSORS[name]) for module in (flax_logits_process, gptrio))
    for column in (1, 7, 8, 9):
        expected = oracle(ids, scores, column)
        np.testing.assert_allclose(jax.jit(lambda held, n: held(ids, scores, n))(ours, column), expected, rtol=1e-6)


def test_a_minimum_length_is_that_of_pytorch_one_less_than_that_of_their_flax() -> None:
    ids, scores = np.zeros((2, 12), np.int64), np.zeros((2, VOCABULARY), np.float32)
    theirs, ours = (module.FlaxMinLengthLogitsProcessor(6, END) for module in (flax_logits_process, gptrio))
    for column in range(4, 9):
        pytorch = transformers.MinLengthLogitsProcessor(6, END, device="cpu")
        expected = pytorch(torch.from_numpy(ids[:, :column]), torch.from_numpy(scores)).numpy()
        np.testing.assert_array_equal(ours(ids, jnp.asarray(scores), column), expected)
        is_forbidden = bool(np.isinf(theirs(ids, jnp.asarray(scores), column)).any())
        assert is_forbidden == (column <= 6)
        assert bool(np.isinf(expected).any()) == (column < 6)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_repeated_ngrams_as_in_pytorch(size: int) -> None:  # Transformers' Flax processor does not run on this JAX
    ids = np.random.default_rng(0).integers(0, 4, (2, 12))
    scores = np.zeros((2, VOCABULARY), np.float32)
    for column in (1, 7, 12):
        ours = gptrio.FlaxNoRepeatNGramLogitsProcessor(size)(jnp.asarray(ids), jnp.asarray(scores), column)
        processor = gptrio.NoRepeatNGramLogitsProcessor(size)
        expected = processor(torch.from_numpy(ids[:, :column]), torch.from_numpy(scores))
        np.testing.assert_array_equal(ours, expected.numpy())


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_repetition_penalty_is_that_of_pytorch(penalty: float) -> None:  # Transformers' Flax classes have none
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, 12))
    scores = np.random.default_rng(1).standard_normal((2, VOCABULARY), np.float32)
    for column in (1, 7, 12):
        ours = gptrio.FlaxRepetitionPenaltyLogitsProcessor(penalty)(jnp.asarray(ids), jnp.asarray(scores), column)
        processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
        expected = processor(torch.from_numpy(ids[:, :column]), torch.from_numpy(scores))
        np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("beams", first([1, 3]))
@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "GPTNeoForCausalLM", "GPTNeoXForCausalLM"])
def test_our_pytorch_models_choose_the_same(name: str, beams: int, tmp_path: Any) -> None:
    model, mask = flax_model(f"Flax{name}"), padding("right")
    model.save_pretrained(tmp_path)
    pytorch = getattr(gptrio, name).from_pretrained(tmp_path, from_flax=True)
    options = {"max_new_tokens": 8, "num_beams": beams, "eos_token_id": None, "pad_token_id": PAD}
    options |= {"repetition_penalty": 1.3}
    expected = pytorch.generate(torch.from_numpy(token_ids()), attention_mask=torch.from_numpy(mask), **options)
    actual = model.generate(token_ids(), attention_mask=mask, **options)
    np.testing.assert_array_equal(actual.sequences, expected.numpy())


def best_sequences(model: Any, ids: list[int], ends: list[int], beams: int, new: int) -> list[list[int]]:
    """Beam search in plain Python with a PyTorch model: finished sequences, the best first, without padding."""
    running, finished = [(0.0, ids)], []
    for length in range(1, new + 1):
        with torch.no_grad():
            scores = model(torch.tensor([row for _, row in running])).logits[:, -1].log_softmax(-1)
        found = [
            (total + score, [*row, token])
            for (total, row), each in zip(running, scores.tolist(), strict=True)
            for token, score in enumerate(each)
        ]
        found = sorted(found, reverse=True)[: beams * (1 + len(ends))]
        finished += [(total / length, row) for total, row in found if row[-1] in ends]
        finished = sorted(finished, reverse=True)[:beams]
        running = [pair for pair in found if pair[1][-1] not in ends][:beams]
        if len(finished) == beams and running[0][0] / length <= finished[-1][0]:
            break
    return [row for _, row in finished]


def test_beams_that_several_tokens_end(tmp_path: Any) -> None:
    model = flax_model("FlaxGPTNeoForCausalLM")
    model.save_pretrained(tmp_path)
    pytorch = gptrio.GPTNeoForCausalLM.from_pretrained(tmp_path, from_flax=True)
    ends, ids = [*range(3, 40)], token_ids()
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 8, "eos_token_id": ends, "pad_token_id": 60}
    lengths: set[int] = set()
    for prompt in ids:
        actual = np.asarray(model.generate(prompt[None], **options).sequences).tolist()
        expected = best_sequences(pytorch, prompt.tolist(), ends, 3, 8)
        assert [[token for token in row if token != 60] for row in actual] == expected
        lengths |= {len(row) for row in expected}
    assert len(lengths) > 1  # some have ended, at different places
