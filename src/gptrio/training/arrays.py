"""Nested tuples and mappings of tensors or arrays, as models return them: detached, concatenated, made numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PADDING = -100  # between rows of different lengths


def mapped(function: Callable[[Any], Any], values: Any) -> Any:
    """The same structure, mappings as dictionaries, with a function applied to every leaf."""
    if isinstance(values, Mapping):
        return {name: mapped(function, value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return with_parts(lambda value: mapped(function, value), values)
    return function(values)


def with_parts(function: Callable[[Any], Any], values: Any) -> Any:
    """A mapping, tuple or list of the same class, with a function applied to each of its parts."""
    if isinstance(values, Mapping):
        parts = {name: function(value) for name, value in values.items()}
        return parts if type(values) is dict else type(values)(parts)  # type: ignore[call-arg]  # of BatchEncoding and the like
    made = [function(value) for value in values]
    return type(values)(*made) if hasattr(values, "_fields") else type(values)(made)


def moved(values: Any, device: torch.device, non_blocking: bool = False) -> Any:
    """The same structure with every tensor on a device."""
    if isinstance(values, (Mapping, tuple, list)):
        return with_parts(lambda value: moved(value, device, non_blocking), values)
    return values.to(device, non_blocking=non_blocking) if isinstance(values, Tensor) else values


def detached(values: Any) -> Any:
    """The tensors without their history."""
    return mapped(lambda value: value.detach() if isinstance(value, Tensor) else value, values)


def as_arrays(values: Any) -> Any:
    """Numpy arrays of the tensors; bfloat16, which numpy lacks, becomes float32."""
    return mapped(_as_array, values)


def _as_array(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def plain(values: Any) -> Any:
    """Python numbers of scalars, for JSON."""
    return mapped(_plain, values)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        return value.item()
    return value


def rows_of(values: Any) -> int | None:
    """Rows of the first tensor or array in a structure; None if there is none."""
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, (list, tuple)):
        return next((rows for rows in map(rows_of, values) if rows is not None), None)
    return int(values.shape[0]) if isinstance(values, (Tensor, np.ndarray)) and values.ndim > 0 else None


def bytes_of(values: Any) -> int:
    """Bytes of all tensors of a structure."""
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, (list, tuple)):
        return sum(map(bytes_of, values))
    return values.numel() * values.element_size() if isinstance(values, Tensor) else 0


def concatenated(parts: Sequence[Any]) -> Any:
    """Arrays of the same structure, joined along rows; the second axis is padded to the longest with -100."""
    first = parts[0]
    if isinstance(first, Mapping):
        return {name: concatenated([part[name] for part in parts]) for name in first}
    if isinstance(first, (list, tuple)):
        return type(first)(concatenated(column) for column in zip(*parts, strict=True))
    return joined(parts)


def joined(parts: Sequence[Any], padding: int = PADDING) -> Any:
    """Tensors, or arrays, joined along rows; the second axis is padded to the longest."""
    library: Any = torch if isinstance(parts[0], Tensor) else np
    arrays = [library.atleast_1d(part) for part in parts]
    first = arrays[0]
    if first.ndim == 1 or len({array.shape[1] for array in arrays}) == 1:
        return library.concatenate(arrays)
    shape = (sum(map(len, arrays)), max(array.shape[1] for array in arrays), *first.shape[2:])
    result = first.new_full(shape, padding) if library is torch else np.full(shape, padding, first.dtype)
    start = 0
    for array in arrays:
        result[start : start + len(array), : array.shape[1]] = array
        start += len(array)
    return result


class Rows:
    """Collects what a loop over batches returns.

    Args:
        is_joined: whether the result is one structure of arrays; else it is a list with one for each batch.
    """

    def __init__(self, is_joined: bool = True) -> None:
        self.is_joined = is_joined
        self.parts: list[Any] = []

    def add(self, values: Any) -> None:
        """Keep what a batch returned, where it is."""
        self.parts.append(values)

    def to_arrays(self) -> None:
        """Move what is kept to numpy arrays."""
        self.parts = [as_arrays(part) for part in self.parts]

    def result(self) -> Any:
        """All rows; None if nothing was kept."""
        self.to_arrays()
        if not self.parts:
            return None
        return concatenated(self.parts) if self.is_joined else self.parts
