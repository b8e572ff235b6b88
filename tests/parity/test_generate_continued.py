"""`generate` from new tokens alone beside a filled cache, as loops of chat call it, against transformers 4.56.2."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gptrio
from gptrio.testing import assert_close
from tests.parity.generation import FAMILIES, pair_of_models

FIRST = torch.tensor([[5, 6, 7, 8], [9, 3, 4, 2]])
NEW = torch.tensor([[11, 12], [13, 14]])
OPTIONS: list[dict[str, Any]] = [
    {"max_new_tokens": 6},
    {},  # the default length counts from the new tokens on
    {"max_length": 7},
    {"max_new_tokens": 6, "do_sample": True, "top_k": 5},
    {"max_new_tokens": 6, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
]


@pytest.fixture(autouse=True)
def default_lengths_are_meant(recwarn: pytest.WarningsRecorder) -> None:
    """Transformers warns of its default length."""


def filled(model: Any, ids: Tensor, mask: Tensor | None = None) -> Any:
    with torch.no_grad():
        positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
        return model(ids, attention_mask=mask, position_ids=positions, use_cache=True).past_key_values


def continued(model: Any, mask: Tensor | None, **options: Any) -> Any:
    """What follows two new tokens after a cache of four positions, and the scores."""
    torch.manual_seed(3)
    held = filled(model, FIRST, None if mask is None else mask[:, :4])
    return model.generate(
        NEW,
        past_key_values=held,
        attention_mask=torch.ones(2, 6, dtype=torch.long) if mask is None else mask,
        cache_position=torch.arange(4, 6),
        pad_token_id=1,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_new_tokens_continue_a_cache(family: str, padded: bool, options: dict[str, Any]) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]) if padded else None
    ours, theirs = (continued(model, mask, **options) for model in pair_of_models(family))
    assert torch.equal(ours.sequences, theirs.sequences)
    for mine, expected in zip(ours.scores, theirs.scores, strict=True):
        finite = expected.isfinite()
        assert torch.equal(mine.isfinite(), finite)
        assert_close(mine[finite], expected[finite], 1e-4)
    assert ours.past_key_values.get_seq_length() == theirs.past_key_values.get_seq_length()


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3]], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_new_tokens_padded_on_the_left(family: str, options: dict[str, Any]) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1]])
    ours, theirs = (continued(model, mask, **options) for model in pair_of_models(family))
    assert torch.equal(ours.sequences, theirs.sequences)
    for mine, expected in zip(ours.scores, theirs.scores, strict=True):
        assert_close(mine.clamp(min=-1e4), expected.clamp(min=-1e4), 1e-4)
    alone = filled(pair_of_models(family)[0], FIRST[1:])
    rest = {"past_key_values": alone, "attention_mask": torch.ones(1, 5), "pad_token_id": 1}
    row = pair_of_models(family)[0].generate(NEW[1:, 1:], max_new_tokens=6, **rest)
    if not options.get("do_sample"):
        assert torch.equal(row[0], ours.sequences[1, 1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation(family: str) -> None:
    turns = [torch.tensor([[3, 4, 5]]), torch.tensor([[21, 22]]), torch.tensor([[33, 9, 2, 7]])]
    told: list[list[list[int]]] = []
    for model in pair_of_models(family):
        cache, last, answers = None, torch.empty(1, 0, dtype=torch.long), []
        for words in turns:
            ids = torch.cat([last, words], dim=1)
            past = 0 if cache is None else cache.get_seq_length()
            result = model.generate(
                ids,
                past_key_values=cache,
                attention_mask=torch.ones(1, past + ids.shape[1], dtype=torch.long),
                cache_position=torch.arange(past, past + ids.shape[1]),
                max_new_tokens=4,
                pad_token_id=1,
                return_dict_in_generate=True,
            )
            cache, last = result.past_key_values, result.sequences[:, -1:]
            answers.append(result.sequences.tolist()[0])
        told.append(answers)
    assert told[0] == told[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("given", ["mask", "position", "both"])
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}, {"assistant_early_exit": 1}], ids=str
)
def test_the_mask_or_the_position_alone_tell(family: str, given: str, options: dict[str, Any]) -> None:
    """What Transformers cannot do with one of them, or with beams, equals the whole prompt's continuation."""
    model = pair_of_models(family)[0]
    whole = model.generate(torch.cat([FIRST, NEW], dim=1), max_new_tokens=6, pad_token_id=1, **options)
    told: dict[str, Any] = {}
    if given != "position":
        told["attention_mask"] = torch.ones(2, 6)
    if given != "mask":
        told["cache_position"] = torch.arange(4, 6)
    ids = model.generate(NEW, past_key_values=filled(model, FIRST), max_new_tokens=6, pad_token_id=1, **told, **options)
    assert torch.equal(ids, whole[:, 4:])


def test_what_cannot_follow_is_named() -> None:
    model = pair_of_models("gpt2")[0]
    for told, message in (
        ({"cache_position": torch.arange(5, 7)}, "cache_position starts at 5, but past_key_values hold 4"),
        ({"attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 1, 1, 0]])}, "it is not on the left of the new tokens"),
        ({}, "pass an attention_mask that counts the cache's positions too"),
    ):
        with pytest.raises(gptrio.InputError, match=message):
            model.generate(NEW, past_key_values=filled(model, FIRST), pad_token_id=1, max_new_tokens=2, **told)
    local = pair_of_models("gpt_neo")[0]
    with pytest.raises(gptrio.InputError, match="a local window would count it"):
        mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 1]])
        local.generate(NEW, past_key_values=filled(local, FIRST), pad_token_id=1, attention_mask=mask)
