"""Optimizers by name, and Adafactor, beside the reference's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import optimization as reference

import gptrio
from gptrio import optimization, trainer_pt_utils
from gptrio.training.enums import BITSANDBYTES_OPTIMIZERS, TORCH_OPTIMIZERS

OPTIONS = [
    {"lr": 1e-2, "scale_parameter": False, "relative_step": False},
    {"lr": 1e-2, "scale_parameter": True, "relative_step": False, "beta1": 0.9, "weight_decay": 0.1},
    {"warmup_init": True, "clip_threshold": 0.5, "decay_rate": -0.5},
]


@pytest.mark.parametrize("name", sorted(each.value for each in TORCH_OPTIMIZERS | BITSANDBYTES_OPTIMIZERS))
def test_names_give_the_references_class_and_arguments(name, tmp_path):
    given = {"optim": name, "adam_beta1": 0.8, "adam_epsilon": 1e-7, "learning_rate": 3e-4}
    ours = gptrio.Trainer.get_optimizer_cls_and_kwargs(gptrio.TrainingArguments(tmp_path, **given))
    theirs = transformers.Trainer.get_optimizer_cls_and_kwargs(transformers.TrainingArguments(tmp_path, **given))
    assert ours[0] is theirs[0] or ours[0] is gptrio.Adafactor
    assert {**ours[1], "fused": None} == {**theirs[1], "fused": None}  # of adamw_torch: only faster


def parameters() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in ((4, 3), (3,), (2, 4, 3))]
    return [torch.nn.Parameter(each) for each in [*made, made[0].bfloat16()]]


def run(library: Any, options: dict[str, Any]) -> tuple[list[torch.Tensor], list[Any]]:
    """Parameters after five steps, and what the schedule showed."""
    values = parameters()
    optimizer = library.Adafactor(values, **options)
    schedule = library.get_adafactor_schedule(optimizer, 0.5)
    shown = schedule.get_lr()
    for step in range(5):
        for value in values:
            value.grad = torch.sin(value.detach() * (step + 1))
        optimizer.step()
        shown = [*shown, *schedule.get_lr()]
    return values, shown


@pytest.mark.parametrize("options", OPTIONS)
def test_adafactor_takes_the_references_steps(options):
    ours, theirs = run(optimization, options), run(reference, options)
    for mine, other, before in zip(ours[0], theirs[0], parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
        assert mine.dtype != torch.float32 or not torch.equal(mine, before)
    assert [float(rate) for rate in ours[1]] == pytest.approx([float(rate) for rate in theirs[1]], rel=1e-6)


@pytest.mark.parametrize("options", [{"lr": 1e-3}, {"warmup_init": True, "relative_step": False, "lr": 1e-3}])
def test_switches_that_contradict_each_other_are_refused_as_in_the_reference(options):
    for library in (optimization, reference):
        with pytest.raises(ValueError, match="relative_step"):
            library.Adafactor(parameters(), **options)


def test_names_of_parameters_come_in_the_references_order():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GRUCell(4, 2), torch.nn.LayerNorm(2))
    model.register_parameter("own", torch.nn.Parameter(torch.zeros(1)))
    names = [
        get(model, [torch.nn.LayerNorm], [r"bias_hh"])
        for get in (trainer_pt_utils.get_parameter_names, transformers.trainer_pt_utils.get_parameter_names)
    ]
    assert names[0] == names[1] and names[0][-1] == "own"
