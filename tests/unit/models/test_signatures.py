"""Forwards are written once; each class has its own positional order, and takes what it documents."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptrio.models.base.signatures import BackboneInputs, positional_order
from gptrio.testing import tiny_config


@positional_order("attention_mask input_ids labels **rest")
class Shared(nn.Module):
    """Returns what its forward gets."""

    def forward(self, labels: Tensor | None = None, rest: dict[str, Any] | None = None, **backbone_inputs: Any) -> Any:
        return labels, rest, backbone_inputs


@positional_order("input_ids labels")
class Family(Shared):
    """The same arguments in another order."""


def test_positions_are_those_of_the_class() -> None:
    assert Shared()(1, 2, 3) == (3, None, {"input_ids": 2, "attention_mask": 1})
    assert Family()(1, 2) == (2, None, {"input_ids": 1, "attention_mask": None})
    assert Family()(1, attention_mask=5) == (None, None, {"input_ids": 1, "attention_mask": 5})


def test_other_keywords_go_into_the_dictionary() -> None:
    assert Family()(1, alpha=2, beta=3)[1] == {"alpha": 2, "beta": 3}


def test_the_backbone_gets_its_inputs_in_one_order() -> None:
    _, _, given = Shared()(attention_mask=1, input_ids=2)
    assert list(given) == ["input_ids", "attention_mask"]
    assert next(iter(BackboneInputs.__annotations__)) == "input_ids"


def test_signatures_show_the_order_and_the_types() -> None:
    shown = inspect.signature(Family.forward)
    assert list(shown.parameters) == ["self", "input_ids", "labels", "rest"]
    assert shown.parameters["input_ids"].annotation == "Tensor | None"
    assert shown.parameters["rest"].kind is inspect.Parameter.VAR_KEYWORD
    assert shown.return_annotation == "Any"


@pytest.mark.parametrize("name", ["cache_position", "encoder_hidden_states", "wrong"])
def test_an_argument_that_a_head_does_not_take_is_refused(name: str) -> None:
    from gptrio import GPT2ForSequenceClassification

    model = GPT2ForSequenceClassification(tiny_config("gpt2", pad_token_id=0))
    with pytest.raises(TypeError, match=f"GPT2ForSequenceClassification.forward.. got an unexpected .* {name!r}"):
        model(torch.ones(1, 3, dtype=torch.long), **{name: None})
