"""Adafactor (Shazeer and Stern, arXiv:1804.04235) with the switches of Transformers, and its schedule.

`torch.optim.Adafactor` always scales its step by the size of a parameter; here that can be switched off, as
`optim="adafactor"` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gptrio.errors import OptionError


class Adafactor(Optimizer):
    """Divides gradients by the root of their mean square, which of a matrix is kept by row and by column alone.

    Args:
        params: parameters, or groups of them.
        lr: learning rate; None with `relative_step`.
        eps: added to squared gradients; least size of a parameter.
        clip_threshold: largest root mean square of an update.
        decay_rate: the mean forgets by 1 - step ** decay_rate.
        beta1: of the mean of updates; None keeps none.
        weight_decay: share of a parameter that a learning rate of 1 would take away.
        scale_parameter: multiply the learning rate by the root mean square of the parameter.
        relative_step: take a learning rate that falls with the root of the step.
        warmup_init: let it grow linearly at first.

    Raises:
        OptionError: the switches contradict each other.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
    ) -> None:
        if lr is not None and relative_step:
            raise OptionError(f"lr={lr} does not go with relative_step=True, which chooses it; set one of them alone")
        if warmup_init and not relative_step:
            raise OptionError("warmup_init=True needs relative_step=True, whose learning rate it lets grow")
        options = {"lr": lr, "eps": eps, "clip_threshold": clip_threshold, "decay_rate": decay_rate, "beta1": beta1}
        switches = {"scale_parameter": scale_parameter, "relative_step": relative_step, "warmup_init": warmup_init}
        super().__init__(params, {**options, "weight_decay": weight_decay, **switches})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have gradients; returns what `closure`, which computes them anew, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(group, parameter)
        return loss

    def _update(self, group: dict[str, Any], parameter: Tensor) -> None:
        gradient, state = _widened(parameter.grad), self.state[parameter]
        values = _widened(parameter)
        if not state:
            state.update(_first_state(gradient, group["beta1"] is not None))
        state["step"] += 1
        state["RMS"] = _root_mean_square(values)
        learning_rate = self._get_lr(group, state)
        kept = 1.0 - state["step"] ** group["decay_rate"]
        update = gradient * _inverse_root(state, gradient.square() + group["eps"][0], kept)
        update.div_((_root_mean_square(update) / group["clip_threshold"]).clamp_(min=1.0)).mul_(learning_rate)
        if group["beta1"] is not None:
            update = state["exp_avg"].mul_(group["beta1"]).add_(update, alpha=1 - group["beta1"])
        if group["weight_decay"] != 0:
            values.add_(values, alpha=-group["weight_decay"] * learning_rate)
        values.sub_(update)
        if values is not parameter:
            parameter.copy_(values)

    @staticmethod
    def _get_lr(param_group: dict[str, Any], param_state: dict[str, Any]) -> Any:
        """The learning rate of the latest step of a parameter."""
        rate: Any = param_group["lr"]
        if param_group["relative_step"]:
            most = 1e-6 * param_state["step"] if param_group["warmup_init"] else 1e-2
            rate = min(most, param_state["step"] ** -0.5)
        return max(param_group["eps"][1], param_state["RMS"]) * rate if param_group["scale_parameter"] else rate


def _widened(values: Any) -> Tensor:
    tensor: Tensor = values
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _root_mean_square(values: Tensor) -> Tensor:
    norm: Tensor = values.norm(2)
    return norm / float(values.numel() ** 0.5)


def _first_state(gradient: Tensor, has_mean: bool) -> dict[str, Any]:
    state: dict[str, Any] = {"step": 0, "RMS": 0}
    if has_mean:
        state["exp_avg"] = torch.zeros_like(gradient)
    if gradient.dim() < 2:
        return {**state, "exp_avg_sq": torch.zeros_like(gradient)}
    rows, columns = gradient.shape[:-1], gradient.shape[:-2] + gradient.shape[-1:]
    return {**state, "exp_avg_sq_row": gradient.new_zeros(rows), "exp_avg_sq_col": gradient.new_zeros(columns)}


def _inverse_root(state: dict[str, Any], squares: Tensor, kept: float) -> Tensor:
    """1 over the root of the mean of squares, of which a share is kept; of a matrix, the outer product of two means."""
    if "exp_avg_sq" in state:
        mean: Tensor = state["exp_avg_sq"]
        return mean.mul_(kept).add_(squares, alpha=1.0 - kept).rsqrt()
    by_row: Tensor = state["exp_avg_sq_row"]
    by_column: Tensor = state["exp_avg_sq_col"]
    by_row.mul_(kept).add_(squares.mean(dim=-1), alpha=1.0 - kept)
    by_column.mul_(kept).add_(squares.mean(dim=-2), alpha=1.0 - kept)
    of_rows = (by_row / by_row.mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1)
    return of_rows * by_column.unsqueeze(-2).rsqrt()


class AdafactorSchedule(LambdaLR):
    """Shows a training loop the learning rates that `Adafactor` chooses itself.

    Args:
        optimizer: an `Adafactor`.
        initial_lr: shown before the first step.
    """

    def __init__(self, optimizer: Optimizer, initial_lr: float = 0.0) -> None:
        for group in optimizer.param_groups:
            group["initial_lr"] = initial_lr
        super().__init__(optimizer, lambda _: initial_lr)
        for group in optimizer.param_groups:
            del group["initial_lr"]

    def get_lr(self) -> list[Any]:
        """The learning rate of each group whose first parameter has a gradient."""
        optimizer: Any = self.optimizer
        groups = [group for group in optimizer.param_groups if group["params"][0].grad is not None]
        rates = [optimizer._get_lr(group, optimizer.state[group["params"][0]]) for group in groups]
        return rates or self.base_lrs


def get_adafactor_schedule(optimizer: Optimizer, initial_lr: float = 0.0) -> AdafactorSchedule:
    """An `AdafactorSchedule`."""
    return AdafactorSchedule(optimizer, initial_lr)
