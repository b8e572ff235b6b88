"""Steps that the processes of a run take together, by torch.distributed; with one process they are plain calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from gptrio.errors import CheckpointError

Value = TypeVar("Value")


def world_size() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if _are_many() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _are_many() else 0


def is_first() -> bool:
    """Whether this process is rank 0."""
    return rank() == 0


def from_first(value: Value) -> Value:
    """The value that rank 0 gives, on every rank."""
    if not _are_many():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def together(act: Callable[[], None], only_first: bool = False) -> None:
    """Act on every rank, or on rank 0 alone, and wait for all.

    Raises:
        Exception: what `act` raised here.
        CheckpointError: it failed on another rank.
    """
    if not _are_many():
        act()
        return
    failure: Exception | None = None
    try:
        if is_first() or not only_first:
            act()
    except Exception as error:
        failure = error
    messages: list[str | None] = [None] * world_size()
    dist.all_gather_object(messages, None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for number, message in enumerate(messages):
        if message is not None:
            raise CheckpointError(f"rank {number} failed: {message}")


def _are_many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
