"""A run that is saved and restored goes on as if nothing had happened: every optimizer and schedule, bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from gptrio.errors import CheckpointError, CheckpointFormatError, GptrioWarning
from gptrio.training.schedules import get_scheduler
from gptrio.training.snapshot import STATE_JSON, STATE_TENSORS, Position, load_snapshot, save_snapshot

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    "AdamW amsgrad": lambda groups: torch.optim.AdamW(groups, lr=1e-2, amsgrad=True),
    "AdamW fused": lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
    "AdamW, lr a tensor": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(1e-2), foreach=False),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=1e-2),
    "SGD momentum": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, nesterov=True),
    "Adagrad": lambda groups: torch.optim.Adagrad(groups, lr=1e-2, lr_decay=0.1),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-2, momentum=0.5, centered=True),
    "Adafactor": lambda groups: torch.optim.Adafactor(groups, lr=1e-2),
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"power": 2.0},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {},
    "cosine_with_min_lr": {"min_lr": 1e-4},
    "warmup_stable_decay": {"num_decay_steps": 4},
    "reduce_lr_on_plateau": {"patience": 0},
}
OF_TORCH: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "MultiStepLR": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [2, 2, 5]),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12),
    "SequentialLR": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.ConstantLR(optimizer, 0.1, 3), lr_scheduler.CosineAnnealingLR(optimizer, 9)],
        milestones=[3],
    ),
}


class Run:
    """A model with dropout that learns from random numbers of all three generators."""

    def __init__(self, optimizer: str, schedule: Callable[[torch.optim.Optimizer], Any], dtype: torch.dtype) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Dropout(0.3), nn.Linear(7, 3)).to(dtype)
        self.model.append(nn.Linear(3, 5, bias=False, dtype=dtype))
        self.model[4].weight = nn.Parameter(torch.randn(3, 5, dtype=dtype).t())  # not contiguous
        matrices = [parameter for parameter in self.model.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.model.parameters() if parameter.ndim == 1]
        self.optimizer = OPTIMIZERS[optimizer]([{"params": matrices, "weight_decay": 0.1}, {"params": vectors}])
        self.scheduler = schedule(self.optimizer)
        self.dtype = dtype

    def updates(self, number: int) -> list[torch.Tensor]:
        """The parameters and rates after some more updates."""
        for _ in range(number):
            x = torch.randn(4, 5, dtype=self.dtype) * random.random() + np.random.randn()
            loss = self.model(x.to(self.dtype)).square().mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            plateau = isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau)
            self.scheduler.step(*([loss.item()] if plateau else []))
        rates = [torch.as_tensor(group["lr"]).clone() for group in self.optimizer.param_groups]
        return [*(parameter.detach().clone() for parameter in self.model.parameters()), *rates]

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": None}


def check_resumed(
    folder: Path, optimizer: str, schedule: Callable[[torch.optim.Optimizer], Any], dtype: torch.dtype = torch.float32
) -> None:
    """Six updates equal three, a save, and three of a new run that is restored."""
    run = Run(optimizer, schedule, dtype)
    run.updates(3)
    weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    save_snapshot(folder, **run.parts(), position=Position(1, 2, 3), extra={"sums": [1.5], "pair": (1, None)})
    expected = run.updates(3)
    random.seed(5)
    np.random.seed(5)
    again = Run(optimizer, schedule, dtype)
    again.model.load_state_dict(weights)
    assert load_snapshot(folder, **again.parts()) == (Position(1, 2, 3), {"sums": [1.5], "pair": (1, None)})
    assert all(map(torch.equal, again.updates(3), expected))
    for old, new in zip(run.optimizer.param_groups, again.optimizer.param_groups, strict=True):
        assert {key: old[key] for key in old if key != "params"} == {key: new[key] for key in new if key != "params"}


def linear(optimizer: torch.optim.Optimizer) -> Any:
    return get_scheduler("linear", optimizer, num_warmup_steps=2, num_training_steps=12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_goes_on_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    check_resumed(tmp_path, optimizer, linear)


@pytest.mark.parametrize("name", SCHEDULES)
def test_named_schedule_goes_on(tmp_path: Path, name: str) -> None:
    check_resumed(
        tmp_path,
        "AdamW",
        lambda optimizer: get_scheduler(name, optimizer, 2, 12, scheduler_specific_kwargs=SCHEDULES[name]),
    )


@pytest.mark.parametrize("name", OF_TORCH)
def test_schedule_of_torch_goes_on(tmp_path: Path, name: str) -> None:
    check_resumed(tmp_path, "SGD", OF_TORCH[name])


def test_bfloat16_goes_on(tmp_path: Path) -> None:
    check_resumed(tmp_path, "AdamW", linear, torch.bfloat16)


class Float32Momentum(torch.optim.Optimizer):
    """Keeps float32 for bfloat16 parameters, which torch's own `load_state_dict` would round."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override] - no loss is returned
        for parameter in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            state = self.state[parameter]
            momentum = state.setdefault("momentum", torch.zeros_like(parameter, dtype=torch.float32))
            momentum.mul_(0.9).add_(parameter.grad.float())
            parameter.data.copy_(parameter.float() - 0.1 * momentum)


def test_state_of_a_wider_type_than_the_parameter_is_not_rounded(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(OPTIMIZERS, "own", Float32Momentum)
    check_resumed(tmp_path, "own", linear, torch.bfloat16)


def test_scaler_is_restored(tmp_path: Path) -> None:
    run = Run("AdamW", linear, torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    scaler.scale(torch.ones(1))
    save_snapshot(tmp_path, **{**run.parts(), "scaler": scaler}, position=Position(0, 0, 0), extra={})
    again = torch.amp.GradScaler("cpu")
    load_snapshot(tmp_path, **{**run.parts(), "scaler": again})
    assert again.state_dict() == scaler.state_dict()


def saved(folder: Path, optimizer: str = "AdamW") -> Run:
    run = Run(optimizer, linear, torch.float32)
    run.updates(1)
    save_snapshot(folder, **run.parts(), position=Position(0, 1, 0), extra={})
    return run


def test_no_pickle_is_written_and_the_json_is_strict(tmp_path: Path) -> None:
    saved(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [STATE_JSON, STATE_TENSORS]
    json.loads((tmp_path / STATE_JSON).read_text(), parse_constant=pytest.fail)


def test_other_optimizer_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(CheckpointError, match="has the state of AdamW, but this run trains with SGD"):
        load_snapshot(tmp_path, **Run("SGD", linear, torch.float32).parts())


def test_other_parameters_are_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path)
    run = Run("AdamW", linear, torch.float32)
    del run.optimizer.param_groups[1]["params"][0]
    with pytest.raises(CheckpointError, match=r"of those that it has, 0\.bias are not trained now"):
        load_snapshot(tmp_path, **run.parts())


def test_other_shapes_are_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path)
    run = Run("AdamW", linear, torch.float32)
    run.model[0].weight.data = torch.zeros(9, 5)
    with pytest.raises(CheckpointError, match=r"exp_avg of 0\.weight in shape \(7, 5\); the parameter has \(9, 5\)"):
        load_snapshot(tmp_path, **run.parts())


def test_state_that_a_checkpoint_cannot_hold_is_named(tmp_path: Path) -> None:
    run = Run("AdamW", linear, torch.float32)
    with pytest.raises(CheckpointError, match=r"extra\.callbacks\.0 is a function"):
        save_snapshot(tmp_path, **run.parts(), position=Position(0, 0, 0), extra={"callbacks": [saved]})


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    run = saved(tmp_path)
    (tmp_path / STATE_TENSORS).unlink()
    with pytest.raises(CheckpointFormatError, match=f"{STATE_TENSORS} is missing"):
        load_snapshot(tmp_path, **run.parts())


def test_folder_with_only_a_model_warns_of_what_begins_anew(tmp_path: Path) -> None:
    run = Run("AdamW", linear, torch.float32)
    with pytest.warns(GptrioWarning, match=r"has no optimizer\.pt, scheduler\.pt, rng_state\.pth"):
        assert load_snapshot(tmp_path, **run.parts()) == (None, {})
