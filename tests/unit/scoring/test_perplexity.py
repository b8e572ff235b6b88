"""`perplexity` scores each token once; `choose` and `prefer` compare what `score` gives."""

from __future__ import annotations

import math

import pytest
import torch

import gptrio
from gptrio import InputError, OptionError, TokenIdError
from gptrio.scoring.perplexity import windows
from gptrio.testing.tiny import byte_tokenizer
from tests.contract.families import FAMILIES

BYTES = byte_tokenizer()
TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune. " * 3


@pytest.fixture(params=FAMILIES, ids=str)
def model(request):
    return request.param.build()


@torch.no_grad()
def slow_log_probs(model, ids: list[int], stride: int) -> list[float]:
    """One window after the other, through the whole forward."""
    found, done = [], 1
    for start in range(0, len(ids), stride):
        window = ids[start : start + 65]
        log_probs = model(torch.tensor([window[:64]])).logits[0].log_softmax(-1)
        found += [log_probs[i - 1, window[i]].item() for i in range(done - start, len(window))]
        done = start + len(window)
        if done == len(ids):
            return found
    raise AssertionError("windows end before the text")


@pytest.mark.parametrize("stride", (64, 32, 7))
def test_perplexity_equals_windows_computed_one_by_one(model, stride):
    result = gptrio.perplexity(model, BYTES, TEXT, stride=stride)
    expected = slow_log_probs(model, [256, *BYTES(TEXT)["input_ids"]], stride)
    assert (result.tokens, result.bytes, result.stride, result.context) == (len(TEXT), len(TEXT), stride, 64)
    assert result.log_prob == pytest.approx(sum(expected), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(-sum(expected) / len(TEXT)), rel=1e-5)
    assert result.bits_per_byte == pytest.approx(-sum(expected) / math.log(2) / len(TEXT), rel=1e-5)


def test_a_short_text_has_the_perplexity_of_its_score(model):
    score = gptrio.score(model, BYTES, "the cat")
    assert gptrio.perplexity(model, BYTES, "the cat").perplexity == pytest.approx(score.perplexity)
    unstarted = gptrio.perplexity(model, BYTES, "the cat", start=None)
    assert (unstarted.tokens, unstarted.bytes) == (6, 6)


@pytest.mark.parametrize("stride", range(1, 6))
@pytest.mark.parametrize("length", range(2, 14))
def test_windows_predict_each_token_once(stride, length):
    predicted = []
    for row in windows(range(length), 5, stride):
        assert 1 <= row.first < len(row.ids) <= 6
        predicted += row.ids[row.first :]
    assert predicted == list(range(1, length))


@pytest.mark.parametrize("stride", (0, 65, 1.5))
def test_an_impossible_stride_is_named(model, stride):
    with pytest.raises(OptionError, match=f"stride={stride} is impossible; expected 1 to 64"):
        gptrio.perplexity(model, BYTES, TEXT, stride=stride)


def test_a_single_token_has_no_perplexity_of_its_own(model):
    with pytest.raises(InputError, match="single token"):
        gptrio.perplexity(model, BYTES, "a", start=None)


def test_an_id_outside_the_vocabulary_is_the_texts(model):
    with pytest.raises(TokenIdError, match="token id 300 of the text is outside"):
        gptrio.perplexity(model, BYTES, [1] * 200 + [300])


def test_the_likeliest_option_is_chosen(model):
    options = [" sat", " slept well", "."]
    choice = gptrio.choose(model, BYTES, "the cat", options)
    totals = [gptrio.score(model, BYTES, option, "the cat").total for option in options]
    assert choice.scores == pytest.approx(totals, abs=1e-4)
    assert (choice.index, choice.option) == (totals.index(max(totals)), options[choice.index])


def test_options_are_compared_per_token_or_byte_on_request(model):
    results = gptrio.choose(model, BYTES, ["the cat", ""], [["é", " sat"], ["a", "b", "c"]], normalize="token")
    assert results[0].scores == [result.mean for result in results[0].results]
    assert len(results[1].scores) == 3
    by_byte = gptrio.choose(model, BYTES, "the cat", ["é", " sat"], normalize="byte")
    assert by_byte.scores == pytest.approx(
        [result.total / n for result, n in zip(by_byte.results, (2, 4), strict=True)]
    )


@pytest.mark.parametrize(
    ("contexts", "options", "message"),
    [
        ("a", "b", "one string"),
        (["a", "b"], [["x"]], "options of length 1 do not fit 2 contexts"),
        (["a"], [[]], "no options"),
        ("a", ["x", ["y"]], "length 2 do not fit 1 context;"),
    ],
)
def test_options_that_do_not_fit_are_named(contexts, options, message):
    with pytest.raises(InputError, match=message):
        gptrio.choose(FAMILIES[0].build(), BYTES, contexts, options)


def test_an_unknown_normalization_is_named():
    with pytest.raises(InputError, match="normalize='mean'"):
        gptrio.choose(FAMILIES[0].build(), BYTES, "a", ["b"], normalize="mean")


def test_the_likelier_text_of_a_pair_is_preferred(model):
    pairs = [("the cats sleep.", "the cats sleeps."), ("b", "a")]
    for pair, found in zip(pairs, gptrio.prefer(model, BYTES, pairs), strict=True):
        first, second = (gptrio.score(model, BYTES, text).total for text in pair)
        assert found.first_is_likelier == (first > second)
        assert found.difference == pytest.approx(first - second, abs=1e-4)
    with pytest.raises(InputError, match=r"pairs\[0\] is 'ab'"):
        gptrio.prefer(model, BYTES, ["ab"])
    with pytest.raises(InputError, match=r"pairs\[1\]\[0\] is empty"):
        gptrio.prefer(model, BYTES, [("a", "b"), ("", "c")])
    with pytest.raises(InputError, match="option 1 of context 0 takes 67 tokens"):
        gptrio.choose(model, BYTES, "the", ["a", "b" * 65])


@pytest.mark.parametrize("normalize", ("sum", "token", "byte"))
@pytest.mark.parametrize("options", (["b", "cd"], ["cd", "ef"]))
def test_first_tokens_that_nothing_precedes_are_not_compared(model, options, normalize):
    with pytest.raises(InputError, match=r"nothing precedes their first tokens.*keep start='auto'"):
        gptrio.choose(model, BYTES, "", options, normalize, start=None)
    with pytest.raises(InputError, match="nothing precedes their first tokens"):
        gptrio.prefer(model, BYTES, [tuple(options)], start=None)


def test_texts_that_begin_alike_compare_without_a_start(model):
    (found,) = gptrio.prefer(model, BYTES, [("the cat", "the dog")], start=None)
    after_first = [score.total for score in gptrio.score(model, BYTES, ["he cat", "he dog"], "t")]
    assert found.difference == pytest.approx(after_first[0] - after_first[1], abs=1e-4)
