"""Warnings of a forward: once, at the caller's line, with the way out; and none where all is well."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gptrio import AutoModelForCausalLM, GPT2ForSequenceClassification, GPT2LMHeadModel
from gptrio.errors import GptrioWarning
from gptrio.models.base import inputs
from gptrio.testing import tiny_config

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
LEFT = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])


@pytest.fixture(autouse=True)
def nothing_warned_of_yet() -> Iterator[None]:
    inputs.warn_once.cache_clear()
    yield
    inputs.warn_once.cache_clear()


def warned(model: Any, **arguments: Any) -> list[str]:
    """Messages of a call, all of which point at this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(**arguments)
    assert all(warning.category is GptrioWarning and warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def test_left_padding_without_positions_is_told_once() -> None:
    model = GPT2LMHeadModel(tiny_config()).eval()
    (message,) = warned(model, input_ids=IDS, attention_mask=LEFT)
    assert "position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0)" in message
    assert warned(model, input_ids=IDS, attention_mask=LEFT) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"attention_mask": LEFT, "position_ids": (LEFT.cumsum(-1) - 1).clamp(min=0)},
        {"attention_mask": LEFT.flip(1)},
        {"attention_mask": torch.ones(2, 4)},
        {},
    ],
    ids=lambda arguments: "-".join(arguments) or "plain",
)
def test_nothing_is_told_where_all_is_well(arguments: dict[str, Any]) -> None:
    assert warned(GPT2LMHeadModel(tiny_config()).eval(), input_ids=IDS, **arguments) == []


def test_padding_that_is_one_of_several_ends_may_be_a_real_token() -> None:
    several = GPT2LMHeadModel(tiny_config(pad_token_id=8, eos_token_id=[256, 8])).eval()
    assert warned(several, input_ids=IDS) == []
    others = GPT2LMHeadModel(tiny_config(pad_token_id=8, eos_token_id=[256, 9])).eval()
    assert len(warned(others, input_ids=IDS)) == 1


def test_padding_tokens_without_a_mask() -> None:
    model = GPT2LMHeadModel(tiny_config(pad_token_id=8)).eval()
    (message,) = warned(model, input_ids=IDS)
    assert "no attention_mask was given" in message
    assert warned(model, input_ids=IDS) == []
    end = GPT2LMHeadModel(tiny_config(pad_token_id=256)).eval()  # the end of text, as is common: a real token
    assert warned(end, input_ids=torch.tensor([[256, 1, 256]])) == []


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neo", "gpt_neox"])
@pytest.mark.parametrize("options", [{"use_cache": False}, {"output_attentions": True}, {"num_beams": 2}], ids=str)
def test_generate_knows_which_tokens_are_real(model_type: str, options: dict[str, Any]) -> None:
    """Its forwards have no mask where all tokens are real, though one of them, given or generated, be padding's."""
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, pad_token_id=8)).eval()
    call = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [token for token in range(257) if token != 8]}
    arguments = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "return_dict_in_generate": True}
    assert warned(model.generate, **arguments, **call, **options) == []
    assert len(warned(model, input_ids=IDS)) == 1


def test_embeddings_of_several_rows_are_classified_at_their_ends() -> None:
    model = GPT2ForSequenceClassification(tiny_config(pad_token_id=8)).eval()
    (message,) = warned(model, inputs_embeds=torch.zeros(2, 3, 32))
    assert "the last position of each row is classified" in message


def test_checkpointed_gradients_and_a_cache() -> None:
    model = GPT2LMHeadModel(tiny_config()).train()
    model.gradient_checkpointing_enable()
    (message,) = warned(model, input_ids=IDS, use_cache=True)
    assert "use_cache=False" in message
    assert model(input_ids=IDS).past_key_values is None
    assert warned(model.eval(), input_ids=IDS, use_cache=True) == []
    assert model(input_ids=IDS).past_key_values is not None
