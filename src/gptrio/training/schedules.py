"""Learning rate schedules: factors of the initial rate by update, with the names and arguments of Transformers 4.56."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from gptrio.errors import OptionError, UnknownNameError, nearest, warn

Schedule = LRScheduler | ReduceLROnPlateau
_CURVES = ("linear", "cosine", "1-sqrt")


def get_constant_schedule(optimizer: Optimizer, last_epoch: int = -1) -> LambdaLR:
    """Keep the initial rate; `last_epoch`, here as below, is the update after which the schedule goes on."""
    return LambdaLR(optimizer, _constant, last_epoch)


def get_reduce_on_plateau_schedule(optimizer: Optimizer, **kwargs: Any) -> ReduceLROnPlateau:
    """Cut the rate when a metric no longer improves; `kwargs` of torch's `ReduceLROnPlateau`."""
    return ReduceLROnPlateau(optimizer, **kwargs)


def get_constant_schedule_with_warmup(optimizer: Optimizer, num_warmup_steps: int, last_epoch: int = -1) -> LambdaLR:
    """Rise linearly from 0 over `num_warmup_steps` updates, then keep the initial rate."""
    return LambdaLR(optimizer, partial(_warmed_up, num_warmup_steps, _constant), last_epoch)


def get_linear_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, last_epoch: int = -1
) -> LambdaLR:
    """Rise linearly from 0 over `num_warmup_steps` updates, then fall linearly to 0 at `num_training_steps`."""
    return _with_warmup(optimizer, last_epoch, _linear, num_warmup_steps, num_training_steps)


def get_cosine_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
) -> LambdaLR:
    """Rise linearly, then follow `num_cycles` waves of a cosine; half a wave falls to 0."""
    return _with_warmup(optimizer, last_epoch, _cosine, num_warmup_steps, num_training_steps, num_cycles, 0.0)


def get_cosine_with_hard_restarts_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: int = 1,
    last_epoch: int = -1,
) -> LambdaLR:
    """Rise linearly, then fall along half a cosine `num_cycles` times, from the initial rate to 0 each."""
    return _with_warmup(optimizer, last_epoch, _restarts, num_warmup_steps, num_training_steps, num_cycles)


def get_polynomial_decay_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    lr_end: float = 1e-7,
    power: float = 1.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """Rise linearly, then fall to the rate `lr_end` along a power of the part that remains.

    Raises:
        OptionError: `lr_end` is not below the initial rate.
    """
    start = optimizer.defaults["lr"]
    if not lr_end < start:
        raise OptionError(f"lr_end={lr_end} must be smaller than the initial learning rate, {start}")
    return _with_warmup(optimizer, last_epoch, _polynomial, num_warmup_steps, num_training_steps, lr_end / start, power)


def get_inverse_sqrt_schedule(
    optimizer: Optimizer, num_warmup_steps: int, timescale: int | None = None, last_epoch: int = -1
) -> LambdaLR:
    """Rise linearly, then fall with the square root of the updates, counted in `timescale` (the warm-up, or 10,000)."""
    timescale = timescale or num_warmup_steps or 10_000
    return _with_warmup(optimizer, last_epoch, _inverse_sqrt, num_warmup_steps, timescale)


def get_cosine_with_min_lr_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
) -> LambdaLR:
    """Rise linearly, then follow a cosine down to the rate `min_lr`, or to `min_lr_rate` times the initial one.

    Raises:
        OptionError: both or neither of the two are given.
    """
    floor = _floor(optimizer, min_lr, min_lr_rate)
    return _with_warmup(optimizer, last_epoch, _cosine, num_warmup_steps, num_training_steps, num_cycles, floor)


def get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> LambdaLR:
    """As the schedule above, one update ahead; the warm-up starts at `warmup_lr_rate` times the initial rate.

    Raises:
        OptionError: both or neither of `min_lr` and `min_lr_rate` are given.
    """
    floor = _floor(optimizer, min_lr, min_lr_rate)
    factor = partial(_cosine_ahead, num_warmup_steps, num_training_steps, num_cycles, floor, warmup_lr_rate)
    return LambdaLR(optimizer, factor, last_epoch)


def get_wsd_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_decay_steps: int,
    num_training_steps: int | None = None,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
) -> LambdaLR:
    """Warm up from `min_lr_ratio` times the initial rate, keep the rate, then decay to that ratio.

    Args:
        optimizer: its groups' rates are the initial ones.
        num_warmup_steps, num_stable_steps, num_decay_steps: updates of the three stages; without those of the second
            they are what the other two leave of `num_training_steps`.
        num_training_steps: updates in all.
        warmup_type, decay_type: "linear", "cosine" or "1-sqrt".
        min_lr_ratio: least factor of the initial rate.
        num_cycles: waves of a cosine decay.
        last_epoch: update after which the schedule goes on.

    Raises:
        OptionError: an unknown curve, or neither of the last two numbers of updates is given.
    """
    if num_training_steps is None and num_stable_steps is None:
        raise OptionError("num_training_steps and num_stable_steps are both None; pass one of them")
    if num_training_steps is not None and num_stable_steps is not None:
        warn("num_training_steps has no effect, as num_stable_steps is given too; pass one of them")
    for name, value in (("warmup_type", warmup_type), ("decay_type", decay_type)):
        if value not in _CURVES:
            raise OptionError(f"{name}={value!r} is unknown; use 'linear', 'cosine' or '1-sqrt'")
    if num_stable_steps is None:
        num_stable_steps = (num_training_steps or 0) - num_warmup_steps - num_decay_steps
    stages = (num_warmup_steps, num_stable_steps, num_decay_steps)
    factor = partial(_three_stages, stages, (warmup_type, decay_type), min_lr_ratio, num_cycles)
    return LambdaLR(optimizer, factor, last_epoch)


# factors of the initial rate ------------------------------------------------------------------------------------------


def _constant(step: int) -> float:
    return 1.0


def _with_warmup(
    optimizer: Optimizer, last_epoch: int, fall: Callable[..., float], warmup: int, *rest: Any
) -> LambdaLR:
    """A linear rise over `warmup` updates, then `fall(warmup, *rest, step)`."""
    return LambdaLR(optimizer, partial(_warmed_up, warmup, partial(fall, warmup, *rest)), last_epoch)


def _warmed_up(warmup: int, after: Callable[[int], float], step: int) -> float:
    return step / max(1, warmup) if step < warmup else after(step)


def _progress(warmup: int, total: int, step: float) -> float:
    return (step - warmup) / max(1, total - warmup)


def _linear(warmup: int, total: int, step: int) -> float:
    return max(0.0, (total - step) / max(1, total - warmup))


def _wave(progress: float, cycles: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * cycles * 2.0 * progress))


def _cosine(warmup: int, total: int, cycles: float, floor: float, step: int) -> float:
    return max(0.0, _wave(_progress(warmup, total, step), cycles) * (1 - floor) + floor)


def _cosine_ahead(warmup: int, total: int, cycles: float, floor: float, start: float | None, step: int) -> float:
    if step < warmup and start is None:
        return (step + 1) / max(1, warmup)
    if step < warmup:
        return float(start or 0) + (1 - float(start or 0)) * step / max(1, warmup - 1)
    return _cosine(warmup, total, cycles, floor, step + 1)


def _restarts(warmup: int, total: int, cycles: int, step: int) -> float:
    progress = _progress(warmup, total, step)
    return 0.0 if progress >= 1 else max(0.0, _wave(cycles * progress % 1.0, 0.5))


def _polynomial(warmup: int, total: int, end: float, power: float, step: int) -> float:
    if step > total:
        return end
    left = 1 - (step - warmup) / (total - warmup)
    return float((1 - end) * left**power + end)


def _inverse_sqrt(warmup: int, timescale: int, step: int) -> float:
    return 1.0 / math.sqrt((step + timescale - warmup) / timescale)


def _three_stages(
    stages: tuple[int, int, int], curves: tuple[str, str], floor: float, cycles: float, step: int
) -> float:
    warmup, stable, decay = stages
    if step < warmup:
        risen = step / max(1, warmup)
        shape = {"linear": risen, "cosine": 1 - _wave(risen, 0.5), "1-sqrt": 1 - math.sqrt(1 - risen)}[curves[0]]
    elif step < warmup + stable:
        return 1.0
    elif step < warmup + stable + decay:
        gone = (step - warmup - stable) / max(1, decay)
        shape = {"linear": 1 - gone, "cosine": _wave(gone, cycles), "1-sqrt": 1 - math.sqrt(gone)}[curves[1]]
    else:
        return floor
    return max(0.0, shape * (1 - floor) + floor)


def _floor(optimizer: Optimizer, min_lr: float | None, min_lr_rate: float | None) -> float:
    if (min_lr is None) == (min_lr_rate is None):
        raise OptionError(
            f"min_lr={min_lr} and min_lr_rate={min_lr_rate}: give one of the two, through lr_scheduler_kwargs"
        )
    return float(min_lr_rate if min_lr is None else min_lr / optimizer.defaults["lr"])  # type: ignore[arg-type]  # one is set


# by name --------------------------------------------------------------------------------------------------------------

TYPE_TO_SCHEDULER_FUNCTION: dict[str, Callable[..., Schedule]] = {
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
    "cosine_with_restarts": get_cosine_with_hard_restarts_schedule_with_warmup,
    "polynomial": get_polynomial_decay_schedule_with_warmup,
    "constant": get_constant_schedule,
    "constant_with_warmup": get_constant_schedule_with_warmup,
    "inverse_sqrt": get_inverse_sqrt_schedule,
    "reduce_lr_on_plateau": get_reduce_on_plateau_schedule,
    "cosine_with_min_lr": get_cosine_with_min_lr_schedule_with_warmup,
    "cosine_warmup_with_min_lr": get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
    "warmup_stable_decay": get_wsd_schedule,
}
_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau")
_WITHOUT_TOTAL = ("constant_with_warmup", "inverse_sqrt")


def get_scheduler(
    name: str,
    optimizer: Optimizer,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    scheduler_specific_kwargs: dict[str, Any] | None = None,
) -> Schedule:
    """Make a schedule by its name.

    Args:
        name: a key of `TYPE_TO_SCHEDULER_FUNCTION`, or a `SchedulerType`.
        optimizer: its groups' rates are the initial ones.
        num_warmup_steps: updates of the warm-up, for the schedules that have one.
        num_training_steps: updates in all, for the schedules that end.
        scheduler_specific_kwargs: further arguments of that schedule.

    Raises:
        UnknownNameError: there is no such schedule.
        OptionError: the schedule needs a number that is None.
    """
    name = str(getattr(name, "value", name))
    if name not in TYPE_TO_SCHEDULER_FUNCTION:
        known = ", ".join(TYPE_TO_SCHEDULER_FUNCTION)
        hint = nearest(name, TYPE_TO_SCHEDULER_FUNCTION)
        raise UnknownNameError(f"{name!r} is no learning rate schedule; {hint or f'there are {known}'}")
    make, further = TYPE_TO_SCHEDULER_FUNCTION[name], scheduler_specific_kwargs or {}
    if name in _WITHOUT_WARMUP:
        return make(optimizer, **({} if name == "constant" else further))
    if num_warmup_steps is None:
        raise OptionError(f"the schedule {name!r} needs num_warmup_steps, which is None")
    if name in _WITHOUT_TOTAL:
        return make(optimizer, num_warmup_steps=num_warmup_steps, **further)
    if num_training_steps is None and name != "warmup_stable_decay":
        raise OptionError(f"the schedule {name!r} needs num_training_steps, which is None")
    return make(optimizer, num_warmup_steps=num_warmup_steps, num_training_steps=num_training_steps, **further)
