"""The device of a pipeline, and tensors on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gptrio.errors import OptionError
from gptrio.outputs import ModelOutput


def choose_device(model: Any, device: int | str | torch.device | None) -> torch.device:
    """Device on which a pipeline runs its model.

    Args:
        model: a model; one that is spread over devices stays where it is.
        device: number of an accelerator, -1 for where the model is, a name, or None: the first accelerator if there is
            one, else the CPU.

    Raises:
        OptionError: the model is spread over devices and a device is given, or there is no such accelerator.
    """
    spread = getattr(model, "hf_device_map", None)
    if spread is not None:
        if device is not None:
            raise OptionError(
                f"device={device!r} was given for a model that device_map has placed; leave out one of the two"
            )
        device = next(iter(spread.values()))
    if device == -1 or _is_distributed():
        return torch.device(model.device)
    if isinstance(device, int) and device < -1:
        return torch.device("cpu")
    if device is None or isinstance(device, int):
        return _accelerator(device)
    return torch.device(device)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _accelerator(index: int | None) -> torch.device:
    """The accelerator of a number; the CPU if there is none at all."""
    if torch.cuda.is_available():
        if index is not None and index >= torch.cuda.device_count():
            raise OptionError(f"device={index} does not exist; there are {torch.cuda.device_count()} GPUs, from 0 on")
        return torch.device("cuda", index or 0)
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def on_device(value: Any, device: torch.device) -> Any:
    """A value with all tensors in it, or in its mappings, lists and tuples, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        moved = {name: on_device(item, device) for name, item in value.items()}
        return type(value)(**moved) if isinstance(value, ModelOutput) else moved
    if type(value) in (list, tuple):
        return type(value)(on_device(item, device) for item in value)
    return value
