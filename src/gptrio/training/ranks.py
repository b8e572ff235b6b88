"""Steps that the processes of a run take together, by torch.distributed; with one process they are plain calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gptrio.errors import CheckpointError, ProcessLostError
from gptrio.training.arrays import PADDING, mapped

Value = TypeVar("Value")


def launched() -> tuple[int, int]:
    """Number of this process, and of all, as a launcher tells them before the processes know each other."""
    if "RANK" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", "1"))


def world_size() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if _are_many() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _are_many() else 0


def is_first() -> bool:
    """Whether this process is rank 0."""
    return rank() == 0


def leave() -> None:
    """End the group of the processes, of which torch warns where a program ends without it."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def from_first(value: Value) -> Value:
    """The value that rank 0 gives, on every rank."""
    if not _are_many():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gathered(value: Value) -> list[Value]:
    """The values of all ranks, in their order."""
    if not _are_many():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def total(number: float) -> float:
    """The sum over the ranks."""
    return totals([number])[0]


def totals(numbers: Sequence[float]) -> list[float]:
    """The sum of each number over the ranks."""
    return _reduced(numbers, dist.ReduceOp.SUM) if _are_many() else list(numbers)


def most(numbers: Sequence[int]) -> list[int]:
    """The largest of each number over the ranks."""
    return [int(number) for number in _reduced(numbers, dist.ReduceOp.MAX)] if _are_many() else list(numbers)


def summed(value: Tensor) -> Tensor:
    """The sum of a tensor over the ranks."""
    if not _are_many():
        return value
    result = value.detach().clone()
    dist.all_reduce(result)
    return result


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over the ranks."""
    return summed(value) / world_size()


def gather_rows(values: Any) -> Any:
    """The rows of all ranks one after another, in every tensor of a structure.

    Ranks may have different numbers of rows, or none; other axes are padded with -100 to the longest. A tensor without
    axes counts as one row.
    """
    return mapped(lambda value: _all_rows(value) if isinstance(value, Tensor) else value, values)


def together(act: Callable[[], None], acts: bool = True) -> None:
    """Act on the ranks that are to do so, and wait for all.

    Args:
        act: exchanges nothing with other ranks.
        acts: whether this rank does.

    Raises:
        Exception: what `act` raised here.
        CheckpointError: it failed on another rank.
        ProcessLostError: another rank has ended.
    """
    if not _are_many():
        if acts:
            act()
        return
    failure: Exception | None = None
    try:
        if acts:
            act()
    except Exception as error:
        failure = error
    try:
        messages = gathered(None if failure is None else f"{type(failure).__name__}: {failure}")
    except RuntimeError as error:
        words = f"another process of the run has ended, so this one ends too: {error}"
        raise ProcessLostError(words) from failure or error
    if failure is not None:
        raise failure
    for number, message in enumerate(messages):
        if message is not None:
            raise CheckpointError(f"rank {number} failed: {message}")


def _are_many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _device() -> torch.device:
    """Where tensors are exchanged."""
    is_on_gpu = "nccl" in str(dist.get_backend())
    return torch.device("cuda", torch.cuda.current_device()) if is_on_gpu else torch.device("cpu")


def _reduced(numbers: Sequence[float], operation: Any) -> list[float]:
    values = torch.tensor(numbers, dtype=torch.float64, device=_device())
    dist.all_reduce(values, operation)
    result: list[float] = values.tolist()
    return result


def _all_rows(tensor: Tensor) -> Tensor:
    tensor = (tensor if tensor.ndim else tensor[None]).contiguous()
    if not _are_many():
        return tensor
    own = torch.tensor(tensor.shape, device=_device())
    found = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(found, own)
    shapes = [shape.tolist() for shape in found]
    common = [max(sizes) for sizes in zip(*shapes, strict=True)]
    if list(tensor.shape) != common:
        padded = tensor.new_full(common, PADDING)
        padded[tuple(slice(size) for size in tensor.shape)] = tensor
        tensor = padded
    parts = [torch.empty_like(tensor) for _ in shapes]
    dist.all_gather(parts, tensor)
    return torch.cat([part[: shape[0]] for part, shape in zip(parts, shapes, strict=True)])
