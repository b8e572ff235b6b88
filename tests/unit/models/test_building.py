"""Building models: their dtype, their device, what is drawn, and torch's defaults left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gptrio import AutoModelForCausalLM, GPT2LMHeadModel
from gptrio.models.base.building import build
from gptrio.testing import tiny_config


def test_a_model_built_on_a_device_is_drawn() -> None:
    torch.manual_seed(0)
    drawn = build(GPT2LMHeadModel, tiny_config(), device="cpu")
    torch.manual_seed(0)
    plain = GPT2LMHeadModel(tiny_config())
    for (name, one), (_, other) in zip(drawn.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "gpt_neox"])
def test_building_in_a_type_leaves_torchs_default_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dtype: torch.dtype) -> None:
        raise AssertionError(f"torch's default type was set to {dtype}")

    torch.manual_seed(0)
    config = tiny_config(family)
    config.dtype = None
    torch.set_default_dtype(torch.bfloat16)
    try:
        wanted = AutoModelForCausalLM.from_config(config)  # built in torch's default type
    finally:
        torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(torch, "set_default_dtype", refuse)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.dtype == torch.bfloat16
    for (name, one), (_, other) in zip(model.named_parameters(), wanted.named_parameters(), strict=True):
        assert torch.equal(one, other), name


class OwnParts(GPT2LMHeadModel):
    """A class that makes tensors in each of torch's ways."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.made = {
            "tensor": torch.tensor([1.5]),
            "integers": torch.tensor([1]),
            "full": torch.full((2,), 0.5),
            "flags": torch.full((2,), True),
            "steps": torch.arange(0.0, 1.0, 0.5),
            "counted": torch.arange(3),
            "copied": torch.tensor(torch.ones(1, dtype=torch.float64).item(), dtype=torch.float64),
            "named": torch.zeros(2, dtype=torch.float32),
            "placed": torch.linspace(0, 1, 3),
        }


def test_tensors_of_a_users_own_class_have_the_type() -> None:
    made = build(OwnParts, tiny_config(), dtype="bfloat16", device="cpu").made
    assert {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in made.items()} == {
        "tensor": "bfloat16",
        "integers": "int64",
        "full": "bfloat16",
        "flags": "bool",
        "steps": "bfloat16",
        "counted": "int64",
        "copied": "float64",
        "named": "float32",
        "placed": "bfloat16",
    }
