"""Losses and gradients that are not finite: told once, with the step, the rows, and the tensor where it began."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gptrio.errors import DivergenceError, warn
from gptrio.training import ranks
from gptrio.training.arrays import leaves


class DivergenceWatch:
    """Looks at the loss and the gradients of each update, before the optimizer's step.

    Args:
        stop_after: raise after so many updates in a row with a loss or gradient that is not finite; None never does.
    """

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self._has_warned = False
        self._in_a_row = 0

    def observe(
        self,
        step: int,
        loss: Tensor | float,
        gradient_norm: Tensor | float | None,
        *,
        model: nn.Module | None,
        batches: Sequence[Mapping[str, Any]],
        compute_loss: Callable[[Mapping[str, Any]], Tensor],
        rows: Callable[[], Sequence[int]] = tuple,
    ) -> bool:
        """Look at one update; the first that is not finite is computed once more to find the cause, and told.

        Args:
            step: number of the update.
            loss: of the update.
            gradient_norm: before clipping; None if it is not computed, or if a scaler expects infinite ones.
            model: its parameters have not taken the step yet; None: the cause is not searched for.
            batches: of the update; of this rank, where there are several, which all make this call.
            compute_loss: the loss of a batch, with its graph.
            rows: gives the places of the batches' rows in the data set; none if they are not known.

        Returns:
            Whether loss and gradients are finite.

        Raises:
            DivergenceError: `stop_after` updates in a row were not.
        """
        fault = _fault(loss, gradient_norm)
        if fault is None:
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        if not self._has_warned:
            self._has_warned = True
            first = None if model is None else find_first_bad_tensor(model, batches, compute_loss)
            found = ranks.gathered((first, list(rows())))
            number = next((i for i, each in enumerate(found) if each[0]), 0)
            if ranks.is_first():
                where = f" (rank {number})" if len(found) > 1 else ""
                first, places = found[number]
                cause = (
                    _cause(first) if model is not None else "its first tensor is not searched for in divided weights"
                )
                warn(_message(f"{step}{where}", fault, cause, places))
        if self.stop_after is not None and self._in_a_row >= self.stop_after:
            raise DivergenceError(
                f"stopped at update {step}: {fault}, as in the {self._in_a_row - 1} updates before it; resume from an "
                "earlier checkpoint with a smaller learning rate, or without the rows that cause it"
            )
        return False


def find_first_bad_tensor(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    compute_loss: Callable[[Mapping[str, Any]], Tensor],
) -> str | None:
    """Compute batches again, and return in words the first tensor that is not finite; None if all are finite.

    The order is: parameters, outputs of modules as they are computed, the loss, gradients as they go back, gradients of
    parameters. Nothing changes: neither gradients nor random generators.

    Args:
        model: its modules are watched.
        batches: what is computed.
        compute_loss: the loss of a batch, with its graph.
    """
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter):
            return f"parameter {name}, {_describe(parameter)}"
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    for number, batch in enumerate(batches):
        place = f" in batch {number + 1} of {len(batches)}" if len(batches) > 1 else ""
        with torch.random.fork_rng(sorted(devices, key=str)), _watched(model) as found, torch.enable_grad():
            loss = compute_loss(batch)
            if not found and not _is_finite(loss):
                found.append("the loss, although the outputs of all modules are finite")
            if not found:
                _differentiate(model, loss, found)
        if found:
            return f"{found[0]}{place}"
    return None


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """Collect outputs of modules, and their gradients, that are not finite, in the order in which they are computed."""
    found: list[str] = []
    hooks = []

    def watch(name: str) -> Callable[..., None]:
        def look(module: nn.Module, _: Any, output: Any) -> None:
            for tensor in filter(torch.is_tensor, leaves(output)):
                if not _is_finite(tensor):
                    found.append(f"the output of {name} ({type(module).__name__}), {_describe(tensor)}")
                elif tensor.requires_grad:
                    _on_gradient(tensor, _gradient_hook(name, module, found))

        return look

    for name, module in model.named_modules():
        hooks.append(module.register_forward_hook(watch(name or "the model")))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _on_gradient(tensor: Any, hook: Callable[[Tensor], None]) -> None:
    tensor.register_hook(hook)  # which torch has left without types


def _gradient_hook(name: str, module: nn.Module, found: list[str]) -> Callable[[Tensor], None]:
    def look(gradient: Tensor) -> None:
        if not _is_finite(gradient):
            found.append(
                f"the gradient of the output of {name} ({type(module).__name__}), {_describe(gradient)}; the outputs "
                "of all modules are finite"
            )

    return look


def _differentiate(model: nn.Module, loss: Tensor, found: list[str]) -> None:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    for (name, _), gradient in zip(reversed(named), reversed(gradients), strict=True):
        if gradient is not None and not _is_finite(gradient):
            found.append(f"the gradient of parameter {name}, {_describe(gradient)}")


def _fault(loss: Tensor | float, gradient_norm: Tensor | float | None) -> str | None:
    for name, value in ("loss", loss), ("norm of the gradients", gradient_norm):
        if value is not None and not _is_finite(torch.as_tensor(value)):
            return f"the {name} is {float(value)}"
    return None


def _cause(first: str | None) -> str:
    return f"the first tensor that is not finite is {first}" if first else "computed again, all tensors are finite"


def _message(step: str, fault: str, cause: str, rows: Sequence[int]) -> str:
    where = f", rows {', '.join(map(str, rows))} of the data" if rows else ""
    return f"{fault} at update {step}{where}: {cause}. Further ones are not told"


def _describe(tensor: Tensor) -> str:
    """Shape, and how many of the values are wrong, and in which rows of the batch."""
    bad = ~torch.isfinite(tensor)
    nans = int(torch.isnan(tensor).sum())
    kinds = f"{nans} NaN and {int(bad.sum()) - nans} infinite of {tensor.numel():,} values"
    rows = bad.reshape(len(tensor), -1).any(1).nonzero().flatten().tolist() if tensor.ndim > 1 else []
    place = f", first in row {rows[0]}" if rows else ""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}: {kinds}{place}"


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
