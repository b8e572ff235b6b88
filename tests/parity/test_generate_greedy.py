"""Greedy `generate` against transformers 4.56.2, token for token, over random batches, padding, lengths and options."""

from __future__ import annotations

import random
import warnings

import pytest
import torch

from gptrio.generation.outputs import compute_transition_scores
from tests.cases import first
from tests.parity.generation import FAMILIES, pair_of_models, random_batch

transformers = pytest.importorskip("transformers")

CASES = 200
PER_TEST = 20


def random_options(rng: random.Random, vocab: int, length: int) -> dict:
    """A few options of greedy search, each in some of the cases."""
    ends = rng.choice([vocab - 1, [vocab - 1, rng.randrange(vocab)], rng.sample(range(vocab), 12), None])
    options = {"eos_token_id": ends, "pad_token_id": rng.choice([0, vocab - 1])}
    new = rng.randint(1, 12)
    options |= rng.choice([{"max_new_tokens": new}, {"max_length": length + new}, {}])
    possible = {
        "repetition_penalty": rng.choice([0.8, 1.3, 2.0]),
        "no_repeat_ngram_size": rng.choice([1, 2, 3]),
        "bad_words_ids": [[rng.randrange(vocab) for _ in range(rng.randint(1, 2))] for _ in range(20)],
        "suppress_tokens": rng.sample(range(vocab), 20),
        "begin_suppress_tokens": rng.sample(range(vocab), 20),
        "encoder_repetition_penalty": rng.choice([0.7, 1.5]),
        "encoder_no_repeat_ngram_size": rng.choice([1, 2]),
        "sequence_bias": {(rng.randrange(vocab),): 4.0, (rng.randrange(vocab), rng.randrange(vocab)): -2.0},
        "forced_eos_token_id": rng.randrange(vocab),
        "renormalize_logits": True,
        "remove_invalid_values": True,
        "use_cache": False,
        "guidance_scale": 1.5,
    }
    if ends is not None:
        possible["min_length"] = length + rng.randint(1, 8)
        possible["exponential_decay_length_penalty"] = (rng.randint(1, 4), 1.2)
        if "max_new_tokens" in options:
            possible["min_new_tokens"] = rng.randint(1, options["max_new_tokens"])
    names = rng.sample(sorted(possible), rng.choice([0, 1, 1, 2, 3]))
    return options | {name: possible[name] for name in names}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", first(range(0, CASES, PER_TEST), 2))
def test_greedy_tokens(family, start):
    ours, theirs = pair_of_models(family)
    for case in range(start, start + PER_TEST):
        rng = random.Random(case)
        batch = random_batch(rng, ours.config.vocab_size)
        options = random_options(rng, ours.config.vocab_size, batch["input_ids"].shape[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = theirs.generate(**batch, do_sample=False, **options)
            result = ours.generate(**batch, do_sample=False, **options)
        assert torch.equal(result, expected), (case, options, result, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padded_rows_equal_rows_alone(family):
    ours, _ = pair_of_models(family)
    rng = random.Random(7)
    for _ in range(10):
        batch = random_batch(rng, ours.config.vocab_size, rows=3, padded=True)
        together = ours.generate(**batch, max_new_tokens=8, eos_token_id=None)
        for row, mask, result in zip(batch["input_ids"], batch["attention_mask"], together, strict=True):
            alone = ours.generate(row[mask.bool()][None], max_new_tokens=8, eos_token_id=None)
            assert torch.equal(alone[0, -8:], result[-8:])


@pytest.mark.parametrize("family", FAMILIES)
def test_stop_strings(family):
    from gptrio.testing import byte_tokenizer

    ours, theirs = pair_of_models(family)
    tokenizer = byte_tokenizer()
    foreign = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    rng = random.Random(3)
    shortened = 0
    for _ in range(10):
        batch = random_batch(rng, 128)
        free = theirs.generate(**batch, max_new_tokens=20, pad_token_id=0, eos_token_id=256)
        length = batch["input_ids"].shape[1]
        bytes_ = [int(token) for token in free[0, length:] if 32 < token < 127]  # readable ones
        stops = [tokenizer.decode([token]) for token in bytes_[-1:]] or ["e"]
        options = {"max_new_tokens": 20, "pad_token_id": 0, "eos_token_id": 256, "stop_strings": stops}
        expected = theirs.generate(**batch, **options, tokenizer=foreign)
        assert torch.equal(ours.generate(**batch, **options, tokenizer=tokenizer), expected)
        shortened += not torch.equal(expected, free)
    assert shortened > 2, "the test would show nothing"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("use_cache", [True, False])
def test_everything_returned(family, use_cache):
    ours, theirs = pair_of_models(family, attn_implementation="eager")
    batch = random_batch(random.Random(1), 257, rows=2, padded=True)
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    options |= {"output_attentions": True, "output_hidden_states": True, "use_cache": use_cache}
    options |= {"suppress_tokens": [3, 4], "pad_token_id": 0}
    result, expected = ours.generate(**batch, **options), theirs.generate(**batch, **options)
    assert torch.equal(result.sequences, expected.sequences)
    assert list(result.keys()) == list(expected.keys())
    for name in ("scores", "logits"):
        assert len(result[name]) == len(expected[name])
        for own, other in zip(result[name], expected[name], strict=True):
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
    mask = batch["attention_mask"].bool()
    for step, (own, other) in enumerate(zip(result.hidden_states, expected.hidden_states, strict=True)):
        for layer, other_layer in zip(own, other, strict=True):
            assert layer.shape == other_layer.shape
            real = torch.nn.functional.pad(mask, (0, step), value=True)[:, -layer.shape[1] :]
            torch.testing.assert_close(layer[real], other_layer[real], rtol=1e-5, atol=1e-5)
    for own, other in zip(result.attentions, expected.attentions, strict=True):
        for layer, other_layer in zip(own, other, strict=True):
            assert layer.shape == other_layer.shape
            torch.testing.assert_close(layer[:, :, -1], other_layer[:, :, -1], rtol=1e-5, atol=1e-5)
    if use_cache:
        assert result.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()
    own_scores = compute_transition_scores(result.sequences, result.scores, normalize_logits=True)
    scores = theirs.compute_transition_scores(expected.sequences, expected.scores, normalize_logits=True)
    torch.testing.assert_close(own_scores, scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_continuing_from_a_cache(family):
    ours, theirs = pair_of_models(family)
    batch = random_batch(random.Random(2), 257, rows=2, padded=True)
    options = {"max_new_tokens": 5, "return_dict_in_generate": True, "pad_token_id": 0, "eos_token_id": None}
    results = []
    for model in (ours, theirs):
        first = model.generate(**batch, **options)
        mask = torch.cat([batch["attention_mask"], batch["attention_mask"].new_ones(2, 8)], dim=1)
        longer = torch.cat([first.sequences, torch.tensor([[5, 6, 7]] * 2)], dim=1)
        options_ = {**options, "past_key_values": first.past_key_values}
        results.append(model.generate(longer, attention_mask=mask, **options_).sequences)
    assert torch.equal(*results)
    fresh = ours.generate(longer, attention_mask=mask, **options).sequences
    assert torch.equal(results[0], fresh)


@pytest.mark.parametrize("family", FAMILIES)
def test_starting_from_embeddings(family):
    ours, theirs = pair_of_models(family)
    batch = random_batch(random.Random(4), 257, rows=3, padded=True)
    embeds = theirs.get_input_embeddings()(batch["input_ids"]).detach()
    arguments = {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"], "pad_token_id": 0}
    for options in ({"max_new_tokens": 6}, {"max_length": 20}, {"input_ids": batch["input_ids"], "max_new_tokens": 6}):
        expected = theirs.generate(**arguments, **options)
        assert torch.equal(ours.generate(**arguments, **options), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_starting_from_nothing(family):
    ours, theirs = pair_of_models(family)
    options = {"max_new_tokens": 6, "eos_token_id": 3, "pad_token_id": 3}
    assert torch.equal(ours.generate(**options), theirs.generate(**options))


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_with_the_global_seed(family):
    ours, theirs = pair_of_models(family)
    batch = random_batch(random.Random(5), 257, rows=2, padded=True)
    options = {"do_sample": True, "top_k": 30, "temperature": 0.7, "num_return_sequences": 3, "max_new_tokens": 8}
    results = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        results.append(model.generate(**batch, **options, pad_token_id=0))
    assert torch.equal(*results)
