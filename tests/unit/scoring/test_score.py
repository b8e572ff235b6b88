"""`score`: every number equals that of a full forward, however texts are batched, packed and shared."""

from __future__ import annotations

import math

import pytest
import torch

import gptrio
from gptrio import InputError, OptionError, TokenIdError
from gptrio.testing.tiny import byte_tokenizer
from tests.contract.families import FAMILIES

END = 256  # <|endoftext|>
TEXTS = ["the cat sat", "the cat slept on the mat", "a", "the cat sat", "où est-il ?", "then", "x" * 40, "the dog"]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(params=FAMILIES, ids=str)
def model(request):
    return request.param.build()


@torch.no_grad()
def slow(model, ids: list[int], first: int = 1) -> torch.Tensor:
    """(n, V) log-probabilities of everything at the positions that predict ids[first:], from the whole forward."""
    logits = model(torch.tensor([ids])).logits[0, :-1].float()
    return logits.log_softmax(-1)[first - 1 :]


def chosen(log_probs: torch.Tensor, ids: list[int]) -> torch.Tensor:
    return log_probs[torch.arange(len(ids)), torch.tensor(ids)]


def assert_close(found: list[float | None], expected: torch.Tensor, limit: float = 1e-5) -> None:
    assert None not in found
    torch.testing.assert_close(torch.tensor(found), expected, atol=limit, rtol=0)


def test_log_probabilities_and_ranks_are_those_of_the_whole_forward(model, tokenizer):
    for text, result in zip(TEXTS, gptrio.score(model, tokenizer, TEXTS, top=3), strict=True):
        expected = slow(model, [END, *result.ids])
        own = chosen(expected, result.ids)
        assert (result.text, result.ids) == (text, tokenizer(text)["input_ids"])
        assert_close(result.log_probs, own)
        assert result.ranks == ((expected > own[:, None]).sum(-1) + 1).tolist()
        assert [[one.id for one in row] for row in result.top] == expected.topk(3).indices.tolist()
        torch.testing.assert_close(
            torch.tensor([[one.log_prob for one in row] for row in result.top]), expected.topk(3).values
        )
        assert math.isclose(result.total, own.sum().item(), rel_tol=1e-5)
        assert math.isclose(result.mean, own.mean().item(), rel_tol=1e-5)


@pytest.mark.parametrize("batch_tokens", (1, 13, 64, 8192))
@pytest.mark.parametrize("share_prefixes", (True, False))
def test_results_do_not_depend_on_the_batch(model, tokenizer, batch_tokens, share_prefixes):
    options = {"batch_tokens": batch_tokens, "share_prefixes": share_prefixes}
    alone = [gptrio.score(model, tokenizer, text) for text in TEXTS]
    together = gptrio.score(model, tokenizer, TEXTS, **options)
    for one, other in zip(alone, together, strict=True):
        assert one.ids == other.ids
        assert_close(one.log_probs, torch.tensor(other.log_probs))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_half_precision_gives_float32_log_probabilities_of_its_logits(model, tokenizer, dtype):
    model = model.to(dtype)
    for result in gptrio.score(model, tokenizer, TEXTS):
        expected = chosen(slow(model, [END, *result.ids]), result.ids)
        assert_close(result.log_probs, expected, 0.02 if dtype is torch.bfloat16 else 0.005)


@pytest.mark.parametrize("attn_implementation", ("eager", "sdpa"))
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_rows_that_begin_alike_are_computed_once(family, attn_implementation, tokenizer):
    model = family.build(attn_implementation=attn_implementation)
    read = []
    embeddings = model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda _, args: read.append(args[0].numel()))
    context = "a context that is long enough to be shared"
    results = gptrio.score(model, tokenizer, [" yes", " no", " nobody", " yes"], context)
    assert sum(read) == len(context) + len(" ye" + "no" + "bod")
    for result in results:
        ids = [*tokenizer(context)["input_ids"], *result.ids]
        assert_close(result.log_probs, chosen(slow(model, ids, len(context)), result.ids))


def test_options_of_one_token_need_one_row_of_logits(model, tokenizer):
    rows = []
    model.get_output_embeddings().register_forward_hook(lambda _, args, out: rows.append(out.shape[0]))
    gptrio.score(model, tokenizer, ["A", "B", "C", "D"], "Which letter? ")
    assert rows == [1]


def test_logits_exist_at_scored_positions_only_and_in_chunks(model, tokenizer, monkeypatch):
    rows = []
    model.get_output_embeddings().register_forward_hook(lambda _, args, out: rows.append(out.shape[0]))
    monkeypatch.setattr("gptrio.scoring.forward._HEAD_VALUES", 5 * 257)
    result = gptrio.score(model, tokenizer, "abcdefghijkl", "some context")
    assert rows == [5, 5, 2]
    ids = [*tokenizer("some context")["input_ids"], *result.ids]
    assert_close(result.log_probs, chosen(slow(model, ids, 12), result.ids))


def test_the_first_token_has_no_score_without_something_before_it(model, tokenizer):
    result, single = gptrio.score(model, tokenizer, ["the cat", "t"], start=None, top=2)
    assert result.log_probs[0] is result.ranks[0] is None
    assert result.top[0] == []
    assert_close(result.log_probs[1:], chosen(slow(model, result.ids), result.ids[1:]))
    assert math.isclose(result.total, sum(result.log_probs[1:]), rel_tol=1e-6)
    assert result.num_bytes == 6
    assert (single.log_probs, single.total, single.top) == ([None], 0.0, [[]])
    assert math.isnan(single.mean)
    assert math.isnan(single.bits_per_byte)


def test_a_start_token_can_be_chosen_and_precedes_a_context(model, tokenizer):
    result = gptrio.score(model, tokenizer, "cat", "the ", start=7)
    ids = [7, *tokenizer("the cat")["input_ids"]]
    assert_close(result.log_probs, chosen(slow(model, ids, 5), result.ids))


def test_ids_are_scored_like_their_text(model, tokenizer):
    text, context = tokenizer("où est-il ?")["input_ids"], tokenizer("dis: ")["input_ids"]
    (by_ids,) = gptrio.score(model, tokenizer, [text], [context])
    assert by_ids == gptrio.score(model, tokenizer, "où est-il ?", "dis: ")


def test_a_model_in_training_is_scored_without_dropout_and_goes_on_training(tokenizer):
    model = FAMILIES[0].build(resid_pdrop=0.5)
    expected = gptrio.score(model, tokenizer, "the cat")
    model.train()
    assert gptrio.score(model, tokenizer, "the cat") == expected
    assert model.training


def test_modules_keep_modes_of_their_own(tokenizer):
    model = FAMILIES[0].build(resid_pdrop=0.5)
    frozen = model.train().transformer.h[0].eval()
    expected = [module.training for module in model.modules()]
    found = gptrio.score(model, tokenizer, "the cat")
    assert [module.training for module in model.modules()] == expected
    assert not frozen.training and model.training
    assert found == gptrio.score(model.eval(), tokenizer, "the cat")


def test_no_texts_have_no_scores(model, tokenizer):
    assert gptrio.score(model, tokenizer, []) == []


def test_text_past_the_context_names_perplexity(model, tokenizer):
    assert len(gptrio.score(model, tokenizer, "x" * 64).ids) == 64
    with pytest.raises(InputError, match=r"texts\[1\] takes 65 tokens, .* 64 at once; perplexity\(stride=\)"):
        gptrio.score(model, tokenizer, ["x", "x" * 65])


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["a", ""], {}, r"texts\[1\] is empty"),
        (["a", "b"], {"context": ["x"]}, "list of 1 for 2 texts"),
        ([[1, 2]], {"context": "x"}, "one form"),
        (5, {}, "texts is 5"),
        (b"abc", {}, "texts is b'abc'"),
        ([1, 2], {}, r"texts\[0\] is 1; expected a string, or a list of ids"),
        ([[1.5, 2]], {}, r"texts\[0\] is \[1.5, 2\]"),
        (["a"], {"context": 5}, "context is 5"),
        (["a"], {"context": [None]}, r"context of texts\[0\] is None"),
        (["a"], {"start": "none"}, "start='none' is not known; expected 'auto', a token id, or None"),
        (["a"], {"batch_tokens": 0}, "batch_tokens=0 is impossible; expected 1 or more"),
        (["a"], {"batch_tokens": "x"}, "batch_tokens='x' is impossible"),
        (["a"], {"progress": 5}, "progress=5 cannot be called"),
        ("", {}, "the text is empty"),
        ("x" * 65, {}, "the text takes 65 tokens"),
    ],
)
def test_impossible_arguments_are_named(tokenizer, texts, options, message):
    with pytest.raises(InputError, match=message):
        gptrio.score(FAMILIES[0].build(), tokenizer, texts, **options)


@pytest.mark.parametrize("top", (258, -1, 1.5, "3"))
def test_an_impossible_number_of_likeliest_tokens_is_named(tokenizer, top):
    with pytest.raises(OptionError, match=f"top={top!r} is impossible; expected 0 to 257"):
        gptrio.score(FAMILIES[0].build(), tokenizer, "a", top=top)


def test_progress_counts_the_texts_of_which_something_is_scored(tokenizer):
    seen = []
    gptrio.score(
        FAMILIES[0].build(), tokenizer, ["a", "bc", "de"], start=None, progress=lambda *numbers: seen.append(numbers)
    )
    assert seen == [(1, 2), (2, 2)]


def test_ids_may_be_a_tensor(tokenizer):
    model = FAMILIES[0].build()
    (found,) = gptrio.score(model, tokenizer, torch.tensor([[97, 98, 99]]))
    assert found.ids == [97, 98, 99]
    assert found.log_probs == gptrio.score(model, tokenizer, "abc").log_probs


def test_exchanged_arguments_are_named(tokenizer):
    model = FAMILIES[0].build()
    with pytest.raises(InputError, match=r"model is a GPT2Tokenizer.*expected a language model"):
        gptrio.score(tokenizer, model, "a")
    with pytest.raises(InputError, match="tokenizer is 'gpt2'; expected the model's tokenizer"):
        gptrio.score(model, "gpt2", "a")


@pytest.mark.parametrize("index", (257, -1))
def test_an_id_outside_the_vocabulary_is_named(tokenizer, index):
    with pytest.raises(TokenIdError, match=rf"token id {index} of texts\[0\] is outside the vocabulary of 257"):
        gptrio.score(FAMILIES[0].build(), tokenizer, [[1, index]])


def test_a_model_without_a_head_is_refused(tokenizer):
    with pytest.raises(InputError, match="expected a language model"):
        gptrio.score(FAMILIES[0].build("base"), tokenizer, "a")


def test_tokens_that_the_model_has_not_do_not_disturb_boundaries():
    model, extended = FAMILIES[0].build(), byte_tokenizer()
    extended.add_tokens([" added"])
    found, expected = (gptrio.score(model, one, "a b", boundaries=True) for one in (extended, byte_tokenizer()))
    assert found.boundary_log_probs == expected.boundary_log_probs
