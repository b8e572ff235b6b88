"""States of optimizers, schedules and the like as JSON and tensors, so that no pickle is needed.

JSON has no tensors, tuples, sets of numbers that are not finite, or keys that are not text; each of these becomes an
object of one key that begins with "$". What comes back is equal in value and type, tensors bit for bit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from enum import Enum
from typing import Any

import numpy as np
import torch

from gptrio.errors import CheckpointError, CheckpointFormatError

_CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "$tuple": tuple,
    "$dict": dict,
    "$counter": lambda pairs: Counter(dict(pairs)),
}


def encode(value: Any, path: str, tensors: MutableMapping[str, torch.Tensor]) -> Any:
    """Return a value as JSON; its tensors are added to `tensors` under their paths.

    Args:
        value: numbers, text, tensors, arrays, None, and lists, tuples and dictionaries of them.
        path: name of the value, for its tensors and for errors.
        tensors: filled with contiguous tensors on the CPU that share no memory.

    Raises:
        CheckpointError: the value has a part of another type.
    """
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        return {"$array": encode(torch.from_numpy(np.ascontiguousarray(value)), path, tensors)["$tensor"]}
    if hasattr(value, "to_local"):  # a DTensor, of which each rank writes its rows
        return {"$rows": encode(value.to_local(), path, tensors)["$tensor"], "shape": list(value.shape)}
    if isinstance(value, torch.Tensor):
        return _encode_tensor(value, path, tensors)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, tuple):
        return {"$tuple": [encode(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [encode(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return _encode_mapping(value, path, tensors)
    raise CheckpointError(
        f"{path} is a {type(value).__name__}, which a checkpoint cannot hold; expected numbers, text, tensors, and "
        "lists or dictionaries of them"
    )


def decode(
    value: Any, tensors: Mapping[str, torch.Tensor], rows: Callable[[str, torch.Size], Any] | None = None
) -> Any:
    """Return the value that `encode` made JSON of.

    Args:
        value: JSON.
        tensors: as `encode` has filled it.
        rows: gives what stands for a tensor whose rows are divided, by its name and shape.

    Raises:
        CheckpointFormatError: a tensor is missing, or there is an object that `encode` does not make.
    """
    if isinstance(value, list):
        return [decode(item, tensors, rows) for item in value]
    if not isinstance(value, Mapping):
        return value
    kind = next(iter(value), "")
    if not kind.startswith("$"):
        return {key: decode(item, tensors, rows) for key, item in value.items()}
    try:
        content = value[kind]
        if kind == "$tensor":
            return _restride(tensors[content], value.get("stride"))
        if kind == "$rows" and rows is not None:
            return rows(content, torch.Size(value["shape"]))
        if kind == "$array":
            return tensors[content].numpy()
        if kind == "$float":
            return float(content)
        items = [decode(item, tensors, rows) for item in content]
        return _CONTAINERS[kind](items)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointFormatError(f"the state {value!r:.200} of a checkpoint cannot be read: {error}") from error


def _encode_tensor(value: torch.Tensor, path: str, tensors: MutableMapping[str, torch.Tensor]) -> dict[str, Any]:
    if value.layout != torch.strided:
        raise CheckpointError(f"{path} is a tensor of layout {value.layout}, which a checkpoint cannot hold")
    while path in tensors:  # keys may have dots, as the paths do
        path += "_"
    stored = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    tensors[path] = stored
    if value.is_contiguous():
        return {"$tensor": path}
    return {"$tensor": path, "stride": list(torch.empty_like(value).stride())}  # of kernels that it is computed by


def _restride(tensor: torch.Tensor, stride: list[int] | None) -> torch.Tensor:
    if stride is None:
        return tensor
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)


def _encode_mapping(value: Mapping[Any, Any], path: str, tensors: MutableMapping[str, torch.Tensor]) -> dict[str, Any]:
    if isinstance(value, Counter):
        return {"$counter": [encode(pair, path, tensors) for pair in value.items()]}
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: encode(item, f"{path}.{key}", tensors) for key, item in value.items()}
    return {"$dict": [encode(pair, f"{path}.{i}", tensors) for i, pair in enumerate(value.items())]}
