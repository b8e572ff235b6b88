"""Sampled tokens against the exact probabilities (chi-square); seeds, generators, and parameters for each row."""

from __future__ import annotations

import pytest
import torch

import gptrio
from gptrio.errors import OptionError
from gptrio.generation.sampling import SamplingParams, draw, truncate
from gptrio.generation.sampling import sample as sample_rows
from gptrio.testing import tiny_config
from tests import cases

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
@pytest.mark.parametrize("rows", cases.first([6, 1]))
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


ROWS = [  # temperature, top_k, top_p, min_p
    (1.0, 0, 1.0, 0.0),
    (0.7, 5, 1.0, 0.0),
    (1.3, 0, 0.9, 0.0),
    (1.0, 1, 0.5, 0.2),
    (2.0, 40, 0.75, 0.05),
    (0.0, 7, 0.3, 0.0),
]


def params_of(rows, dtype=torch.float64):
    """Parameters with a value for each row."""
    temperature, top_k, top_p, min_p = (torch.tensor(values)[:, None] for values in zip(*rows, strict=True))
    return SamplingParams(temperature.to(dtype), top_k, top_p.to(dtype), min_p.to(dtype))


def processed(scores, temperature, top_k, top_p, min_p):
    """Scores (1, V) after the processors of one row's options."""
    processors = gptrio.LogitsProcessorList()
    if temperature not in (0, 1):
        processors.append(gptrio.TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(gptrio.TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(gptrio.TopPLogitsWarper(top_p))
    if min_p:
        processors.append(gptrio.MinPLogitsWarper(min_p))
    return processors(torch.zeros(1, 1, dtype=torch.long), scores)


@pytest.mark.parametrize("spread", [0.5, 4.0])
@pytest.mark.parametrize("vocabulary", [50, 9000])
def test_parameters_of_each_row_are_its_processors(vocabulary, spread):
    scores = torch.randn(len(ROWS), vocabulary, generator=torch.Generator().manual_seed(0)) * spread
    expected = torch.cat([processed(scores[i : i + 1], *row) for i, row in enumerate(ROWS)])
    assert torch.equal(truncate(scores, params_of(ROWS)), expected)
    numbers = [truncate(scores[i : i + 1], SamplingParams(*row)) for i, row in enumerate(ROWS) if row[0]]
    assert torch.equal(torch.cat(numbers), expected[:-1])
    assert (expected > -torch.inf).sum(-1).tolist()[3] == 1, "the rows are to differ"


def test_tied_scores_are_kept_or_removed_together():
    scores = torch.tensor([[3.0, 1.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    kept = truncate(scores, SamplingParams(top_k=torch.tensor([[1], [2]]))) > -torch.inf
    assert kept.tolist() == [[True, False, True, False], [True, True, True, True]]


def test_a_row_is_drawn_by_its_own_parameters_and_generator():
    scores = torch.randn(len(ROWS), 300, generator=torch.Generator().manual_seed(1)) * 3
    for seed in range(20):
        generators = [torch.Generator().manual_seed(seed + row) for row in range(len(ROWS))]
        tokens = sample_rows(scores, params_of(ROWS), generators)
        for i, row in enumerate(ROWS):
            probabilities = processed(scores[i : i + 1], *row).softmax(-1)
            generator = torch.Generator().manual_seed(seed + i)
            own = torch.multinomial(probabilities, 1, generator=generator) if row[0] else scores[i].argmax()
            assert int(tokens[i]) == int(own), row


def test_temperature_0_takes_the_most_likely_token_and_no_random_number():
    scores = torch.randn(4, 300, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    assert torch.equal(sample_rows(scores, SamplingParams(temperature=0, top_k=3), generator), scores.argmax(-1))
    assert torch.equal(generator.get_state(), before)


def test_one_generator_draws_all_rows_at_once():
    scores = torch.randn(5, 300, generator=torch.Generator().manual_seed(1))
    tokens = sample_rows(scores, SamplingParams(), torch.Generator().manual_seed(7))
    expected = torch.multinomial(scores.softmax(-1), 1, generator=torch.Generator().manual_seed(7))[:, 0]
    assert torch.equal(tokens, expected)


def test_rows_without_a_generator_of_their_own_are_drawn_together():
    probabilities = torch.randn(5, 300, generator=torch.Generator().manual_seed(1)).softmax(-1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        rows = draw(
            probabilities, 2, [None, torch.Generator().manual_seed(1), None, None, torch.Generator().manual_seed(2)]
        )
        torch.manual_seed(3)
        shared = torch.multinomial(probabilities[[0, 2, 3]], 2)
    assert torch.equal(rows[[0, 2, 3]], shared)
    for row, seed in ((1, 1), (4, 2)):
        assert torch.equal(
            rows[row], torch.multinomial(probabilities[row], 2, generator=torch.Generator().manual_seed(seed))
        )


def test_generators_fewer_than_rows_are_refused():
    with pytest.raises(ValueError, match="argument"):
        draw(torch.ones(2, 3), 1, [torch.Generator()])
