"""Sampled tokens against the exact probabilities after processing (chi-square), seeds and generators."""

from __future__ import annotations

import pytest
import torch

import gptrio
from gptrio.errors import OptionError
from gptrio.testing import tiny_config

PROMPT = torch.tensor([[5, 9, 33]])
OPTIONS = {"do_sample": True, "top_k": 5, "temperature": 1.3, "repetition_penalty": 1.2, "eos_token_id": None}


def model_of(seed=0):
    torch.manual_seed(seed)
    return gptrio.GPT2LMHeadModel(tiny_config("gpt2", initializer_range=0.1)).eval()


MODEL, OTHER = model_of(), model_of(1)


@torch.no_grad()
def exact_pairs(model):
    """{(first, second): probability} of the two tokens after the prompt, computed step by step."""

    def following(ids):
        scores = model(ids).logits[0, -1]
        seen = torch.zeros_like(scores, dtype=torch.bool)
        seen[ids[0]] = True
        scores = torch.where(seen, torch.where(scores < 0, scores * 1.2, scores / 1.2), scores) / 1.3
        best, tokens = scores.topk(5)
        return zip(tokens.tolist(), best.softmax(-1).tolist(), strict=True)

    pairs = {}
    for first, p in following(PROMPT):
        for second, q in following(torch.cat([PROMPT, torch.tensor([[first]])], dim=1)):
            pairs[first, second] = p * q
    return pairs


def check_distribution(rows):
    """Chi-square test of the first two tokens in rows (N, at least 2); fails once in a million by chance."""
    expected = exact_pairs(MODEL)
    counts = dict.fromkeys(expected, 0)
    for row in rows[:, :2].tolist():
        counts[tuple(row)] += 1  # a KeyError is a token that cannot be
    number = len(rows)
    statistic = sum((counts[pair] - number * p) ** 2 / (number * p) for pair, p in expected.items())
    freedom = len(expected) - 1
    assert min(expected.values()) * number > 5, "too few samples for the test"
    assert statistic < freedom + 5.5 * (2 * freedom) ** 0.5, statistic


def sample(number, **options):
    """New tokens of `number` samples (number, 2)."""
    result = MODEL.generate(PROMPT, num_return_sequences=number, max_new_tokens=2, **OPTIONS, **options)
    return result[:, PROMPT.shape[1] :]


def test_plain_sampling():
    check_distribution(sample(4000, seed=1))


def test_sampling_with_a_seed_for_each_row():
    check_distribution(sample(4000, seed=list(range(4000))))


@pytest.mark.parametrize(
    "kind",
    [
        {"assistant_model": OTHER},
        {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1},
        {"assistant_early_exit": 1},
    ],
    ids=["draft model", "lookup", "early exit"],
)
@pytest.mark.parametrize("rows", [1, 6])
def test_assisted_sampling(kind, rows, monkeypatch):
    monkeypatch.setattr(OTHER.generation_config, "assistant_confidence_threshold", 0.0)
    options = {**OPTIONS, **kind, "num_return_sequences": rows, "max_new_tokens": 4}
    generator = torch.Generator().manual_seed(2)
    results = [MODEL.generate(PROMPT, **options, generator=generator) for _ in range(500 if rows == 1 else 250)]
    check_distribution(torch.cat(results)[:, PROMPT.shape[1] :])


def test_a_seed_reproduces_a_call_and_leaves_global_state_alone():
    state = torch.random.get_rng_state()
    first, second, third = sample(20, seed=3), sample(20, seed=3), sample(20, seed=4)
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(sample(20, generator=torch.Generator().manual_seed(3)), first)


@pytest.mark.parametrize("kind", [{}, {"assistant_model": OTHER}], ids=["plain", "assisted"])
def test_a_rows_sample_depends_on_its_seed_alone(kind):
    options = {**OPTIONS, "max_new_tokens": 6, **kind}
    ids = torch.tensor([[0, 0, 5, 9, 33], [4, 7, 2, 1, 8], [0, 5, 9, 33, 7]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    if kind:  # drafts of a batch end together, so only a batch of one is the same every time
        first, second = (MODEL.generate(PROMPT, **options, seed=[11]) for _ in range(2))
        assert torch.equal(first, second)
        return
    together = MODEL.generate(ids, attention_mask=mask, **options, seed=[11, 12, 13])
    alone = MODEL.generate(PROMPT, **options, seed=[11])
    assert torch.equal(together[0, 5:], alone[0, 3:])
    swapped = MODEL.generate(ids.flip(0), attention_mask=mask.flip(0), **options, seed=[13, 12, 11])
    assert torch.equal(swapped.flip(0), together)


def test_beam_sampling_with_seeds():
    options = {"do_sample": True, "num_beams": 3, "max_new_tokens": 5, "eos_token_id": None}
    ids = torch.tensor([[5, 9, 33], [4, 7, 2]])
    together = MODEL.generate(ids, **options, seed=[1, 2])
    assert torch.equal(together[:1], MODEL.generate(ids[:1], **options, seed=[1]))
    assert torch.equal(together[1:], MODEL.generate(ids[1:], **options, seed=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": [1, 2]}, "2 seeds or generators for 1 rows"),
        ({"seed": 1, "generator": torch.Generator()}, "both given"),
        ({"seed": "one"}, "must be an integer"),
    ],
)
def test_impossible_seeds(options, message):
    with pytest.raises(OptionError, match=message):
        MODEL.generate(PROMPT, do_sample=True, **options)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, [2**64], True, 1.5])
def test_seeds_that_no_generator_takes_are_named(seed):
    with pytest.raises(OptionError, match="seed="):
        sample(1, seed=seed)
    first, second = sample(3, seed=2**64 - 1), sample(3, seed=2**64 - 1)
    assert first.tolist() == second.tolist()
