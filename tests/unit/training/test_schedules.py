"""Schedules: the rate of every update equals the reference's."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.optimization import get_wsd_schedule as reference_wsd

import gptrio
from gptrio import OptionError, UnknownNameError
from gptrio.training.schedules import get_wsd_schedule

CASES = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.5}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("polynomial", {"power": 2.0, "lr_end": 1e-4}),
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("inverse_sqrt", {}),
    ("cosine_with_min_lr", {"min_lr": 1e-4}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.2}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.2}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.2, "warmup_lr_rate": 0.3}),
    ("warmup_stable_decay", {"num_decay_steps": 5}),
    ("warmup_stable_decay", {"num_decay_steps": 5, "min_lr_ratio": 0.1, "warmup_type": "1-sqrt"}),
    ("warmup_stable_decay", {"num_decay_steps": 5, "warmup_type": "cosine", "decay_type": "linear"}),
    ("warmup_stable_decay", {"num_decay_steps": 5, "decay_type": "1-sqrt"}),
]


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)


def rates(schedule: torch.optim.lr_scheduler.LRScheduler, updates: int = 24) -> list[float]:
    seen = []
    for _ in range(updates):
        seen.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_each_update_has_the_reference_s_rate(name, options, warmup):
    ours, theirs = (
        rates(library.get_scheduler(name, optimizer(), warmup, 20, scheduler_specific_kwargs=options or None))
        for library in (gptrio, transformers)
    )
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-18)


def test_a_plateau_cuts_the_rate_as_in_the_reference():
    options = {"factor": 0.5, "patience": 1}
    pair = [
        library.get_scheduler("reduce_lr_on_plateau", optimizer(), scheduler_specific_kwargs=options)
        for library in (gptrio, transformers)
    ]
    for metric in (1.0, 1.0, 1.0, 1.0, 0.5, 0.6, 0.6, 0.6):
        for schedule in pair:
            schedule.step(metric)
        ours, theirs = (schedule.optimizer.param_groups[0]["lr"] for schedule in pair)
        assert ours == theirs
    assert ours < 1e-2


def test_stages_can_be_given_one_by_one():
    ours, theirs = (
        rates(make(optimizer(), num_warmup_steps=3, num_stable_steps=4, num_decay_steps=5))
        for make in (get_wsd_schedule, reference_wsd)
    )
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_a_schedule_goes_on_from_its_state():
    whole = rates(gptrio.get_scheduler("cosine", optimizer(), 3, 20), 20)
    first = gptrio.get_scheduler("cosine", optimizer(), 3, 20)
    rates(first, 9)
    second = gptrio.get_scheduler("cosine", optimizer(), 3, 20)
    second.load_state_dict(first.state_dict())
    assert rates(second, 11)[1:] == pytest.approx(whole[10:], rel=1e-12)


def test_an_unknown_schedule_is_answered_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match="'cosin' is no learning rate schedule; did you mean 'cosine'"):
        gptrio.get_scheduler("cosin", optimizer(), 0, 10)


@pytest.mark.parametrize(
    ("name", "numbers", "options", "message"),
    [
        ("linear", (None, 10), None, "needs num_warmup_steps"),
        ("linear", (0, None), None, "needs num_training_steps"),
        ("polynomial", (0, 10), {"lr_end": 1.0}, "lr_end=1.0 must be smaller"),
        ("cosine_with_min_lr", (0, 10), None, "give one of the two"),
        ("cosine_with_min_lr", (0, 10), {"min_lr": 0.1, "min_lr_rate": 0.1}, "give one of the two"),
        ("warmup_stable_decay", (0, 10), {"num_decay_steps": 2, "decay_type": "wave"}, "decay_type='wave' is unknown"),
        ("warmup_stable_decay", (0, None), {"num_decay_steps": 2}, "pass one of them"),
    ],
)
def test_what_a_schedule_cannot_do_without_is_named(name, numbers, options, message):
    with pytest.raises(OptionError, match=message):
        gptrio.get_scheduler(name, optimizer(), *numbers, scheduler_specific_kwargs=options)
