"""Beam search of every kind against transformers 4.56.2, token for token, on random configurations."""

from __future__ import annotations

import random
import warnings

import pytest
import torch

import gptrio
from tests.cases import first
from tests.parity.generation import FAMILIES, pair_of_models, random_batch

transformers = pytest.importorskip("transformers")

PER_TEST = 10


def common_options(rng: random.Random, vocab: int, length: int) -> dict:
    """Options of every kind of beam search; most of the vocabulary's ends are likely enough to end beams."""
    number = rng.choice([0, 1, 1, 20, 60])
    ends = rng.sample(range(vocab), number) if number else None
    options = {"eos_token_id": ends if number != 1 else ends[0], "pad_token_id": rng.choice([0, 7])}
    options |= rng.choice([{"max_new_tokens": rng.randint(1, 10)}, {"max_length": length + rng.randint(1, 10)}])
    options["length_penalty"] = rng.choice([1.0, 1.0, 0.0, 2.0, -0.5])
    options["early_stopping"] = rng.choice([False, True, "never"])
    possible = {
        "repetition_penalty": rng.choice([0.8, 1.3]),
        "no_repeat_ngram_size": rng.choice([1, 2]),
        "suppress_tokens": rng.sample(range(vocab), 20),
        "renormalize_logits": True,
        "use_cache": False,
    }
    if ends is not None:
        possible["min_length"] = length + rng.randint(1, 4)
    names = rng.sample(sorted(possible), rng.choice([0, 0, 1, 2]))
    return options | {name: possible[name] for name in names}


def compare(ours, theirs, batch, options, seed=None):
    """Generate with both models and compare sequences and their scores."""
    results = []
    flags = {"return_dict_in_generate": True, "output_scores": True}
    for model in (ours, theirs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if seed is not None:
                torch.manual_seed(seed)
            results.append(model.generate(**batch, **options, **flags))
    result, expected = results
    assert torch.equal(result.sequences, expected.sequences), (options, result.sequences, expected.sequences)
    torch.testing.assert_close(result.sequences_scores, expected.sequences_scores, rtol=1e-4, atol=1e-4)
    return result, expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", first(range(0, 100, PER_TEST)))
def test_beam_search(family, start):
    ours, theirs = pair_of_models(family)
    for case in range(start, start + PER_TEST):
        rng = random.Random(case)
        batch = random_batch(rng, 257)
        options = common_options(rng, 257, batch["input_ids"].shape[1])
        options["num_beams"] = rng.randint(2, 5)
        options["num_return_sequences"] = rng.randint(1, options["num_beams"])
        result, expected = compare(ours, theirs, batch, options)
        assert torch.equal(result.beam_indices, expected.beam_indices)
        scores = [
            model.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
            for model, output in ((ours, result), (theirs, expected))
        ]
        torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", first(range(0, 60, PER_TEST)))
def test_beam_sampling_with_the_global_seed(family, start):
    ours, theirs = pair_of_models(family)
    for case in range(start, start + PER_TEST):
        rng = random.Random(case)
        batch = random_batch(rng, 257)
        options = common_options(rng, 257, batch["input_ids"].shape[1])
        options |= {"do_sample": True, "num_beams": rng.randint(2, 4), "temperature": 1.5, "top_k": 0}
        compare(ours, theirs, batch, options, seed=case)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", first(range(0, 100, PER_TEST)))
def test_group_beam_search(family, start):
    ours, theirs = pair_of_models(family)
    for case in range(start, start + PER_TEST):
        rng = random.Random(case)
        batch = random_batch(rng, 257)
        options = common_options(rng, 257, batch["input_ids"].shape[1])
        groups = rng.randint(2, 3)
        options |= {"num_beam_groups": groups, "num_beams": groups * rng.randint(1, 3)}
        options |= {"diversity_penalty": rng.choice([0.3, 1.0, 5.0])}
        options["num_return_sequences"] = rng.randint(1, options["num_beams"])
        compare(ours, theirs, batch, options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", first(range(0, 100, PER_TEST)))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_constrained_beam_search(family, start):
    ours, theirs = pair_of_models(family)
    for case in range(start, start + PER_TEST):
        rng = random.Random(case)
        batch = random_batch(rng, 257)
        options = common_options(rng, 257, batch["input_ids"].shape[1])
        options["num_beams"] = rng.randint(2, 5)
        options["num_return_sequences"] = rng.randint(1, options["num_beams"])
        words = [[rng.randrange(257) for _ in range(rng.randint(1, 3))] for _ in range(rng.randint(1, 2))]
        any_word = [[rng.randrange(128)], [rng.randrange(128, 257), rng.randrange(257)]]
        wanted = rng.choice([words, [*words, any_word], [any_word]])
        if rng.random() < 0.5:
            results = [model.generate(**batch, **options, force_words_ids=wanted) for model in (ours, theirs)]
            assert torch.equal(*results), (case, options, wanted, results)
            continue
        results = []
        for library, model in ((gptrio, ours), (transformers, theirs)):
            constraints = [library.PhrasalConstraint(word) for word in words]
            constraints += [library.DisjunctiveConstraint(any_word)] if any_word in wanted else []
            results.append(model.generate(**batch, **options, constraints=constraints))
        assert torch.equal(*results), (case, options, wanted, results)


def test_beam_indices_of_groups_lead_to_the_scores():
    ours, _ = pair_of_models("gpt2")
    batch = random_batch(random.Random(3), 257, rows=2)
    result = ours.generate(
        **batch,
        num_beams=4,
        num_beam_groups=2,
        diversity_penalty=0.5,
        num_return_sequences=4,
        max_new_tokens=6,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    steps = ours.compute_transition_scores(result.sequences, result.scores, result.beam_indices)
    torch.testing.assert_close(steps.sum(-1) / 6, result.sequences_scores)
