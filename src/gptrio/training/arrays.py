"""Nested tuples and mappings of tensors or arrays, as models return them: detached, joined, made numpy arrays.

What Transformers has too, for evaluation loops of one's own, has its names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptrio.errors import InputTypeError

PADDING = -100  # between rows of different lengths
_NESTED = (Mapping, tuple, list)


def mapped(function: Callable[[Any], Any], values: Any) -> Any:
    """The same structure, with a function applied to every leaf."""
    if isinstance(values, _NESTED):
        return with_parts(lambda value: mapped(function, value), values)
    return function(values)


def leaves(values: Any) -> Iterator[Any]:
    """What a structure holds, in order."""
    if isinstance(values, _NESTED):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from leaves(value)
    else:
        yield values


def with_parts(function: Callable[[Any], Any], values: Any) -> Any:
    """A mapping, tuple or list of the same class, with a function applied to each of its parts."""
    if isinstance(values, Mapping):
        return _alike(values, {name: function(value) for name, value in values.items()})
    return _alike(values, [function(value) for value in values])


def _alike(values: Any, parts: dict[str, Any] | list[Any]) -> Any:
    """The parts in a structure of the class of another; `BatchEncoding` and the like take a dictionary."""
    return type(values)(*parts) if hasattr(type(values), "_fields") else type(values)(parts)


def moved(values: Any, device: torch.device, non_blocking: bool = False) -> Any:
    """The same structure with every tensor on a device."""

    def placed(value: Any) -> Any:
        return value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value

    return mapped(placed, values)


def nested_detach(tensors: Any) -> Any:
    """The tensors without their history."""
    return mapped(lambda value: value.detach() if isinstance(value, Tensor) else value, tensors)


def nested_numpify(tensors: Any) -> Any:
    """Numpy arrays of the tensors; bfloat16, which numpy lacks, becomes float32."""
    return mapped(_as_array, tensors)


def _as_array(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def denumpify_detensorize(metrics: Any) -> Any:
    """Python numbers of scalars, for JSON; mappings become dictionaries."""
    if isinstance(metrics, Mapping):
        return {name: denumpify_detensorize(value) for name, value in metrics.items()}
    if isinstance(metrics, (list, tuple)):
        return with_parts(denumpify_detensorize, metrics)
    is_scalar = isinstance(metrics, np.generic) or (isinstance(metrics, Tensor) and metrics.numel() == 1)
    return metrics.item() if is_scalar else metrics


def find_batch_size(tensors: Any) -> int | None:
    """Rows of the first tensor or array in a structure; None if there is none."""
    arrays = (leaf for leaf in leaves(tensors) if isinstance(leaf, (Tensor, np.ndarray)) and leaf.ndim > 0)
    return next((int(array.shape[0]) for array in arrays), None)


def bytes_of(values: Any) -> int:
    """Bytes of all tensors of a structure."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(values) if isinstance(leaf, Tensor))


def concatenated(parts: Sequence[Any], padding: int = PADDING) -> Any:
    """Tensors or arrays in structures alike, joined along rows; the second axis is padded to the longest.

    Raises:
        InputTypeError: the structures differ.
    """
    first = parts[0]
    for part in parts[1:]:
        if type(part) is not type(first) and not (isinstance(first, Tensor) and isinstance(part, Tensor)):
            raise InputTypeError(f"a {type(first).__name__} and a {type(part).__name__} cannot be joined")
    if isinstance(first, Mapping):
        return _alike(first, {name: concatenated([part[name] for part in parts], padding) for name in first})
    if isinstance(first, (list, tuple)):
        return _alike(first, [concatenated(column, padding) for column in zip(*parts, strict=True)])
    return _joined(parts, padding)


def _joined(parts: Sequence[Any], padding: int) -> Any:
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


def nested_concat(tensors: Any, new_tensors: Any, padding_index: int = PADDING) -> Any:
    """Tensors or arrays of two structures alike, joined along rows.

    Args:
        tensors: the first rows.
        new_tensors: those that follow.
        padding_index: fills the second axis of the shorter up.

    Raises:
        InputTypeError: leaves are neither tensors nor arrays, or the structures differ.
    """
    for leaf in leaves((tensors, new_tensors)):
        if not isinstance(leaf, (Tensor, np.ndarray)):
            raise InputTypeError(f"a {type(leaf).__name__} cannot be joined; tensors and arrays can")
    return concatenated((tensors, new_tensors), padding_index)


class EvalLoopContainer:
    """Collects what a loop over batches returns.

    Args:
        do_nested_concat: whether the result is one structure of arrays; else it is a list with one for each batch.
        padding_index: fills shorter rows up.
    """

    def __init__(self, do_nested_concat: bool = True, padding_index: int = PADDING) -> None:
        self.do_nested_concat, self.padding_index = do_nested_concat, padding_index
        self.parts: list[Any] = []

    def add(self, tensors: Any) -> None:
        """Keep what a batch returned, where it is."""
        self.parts.append(tensors)

    def to_cpu_and_numpy(self) -> None:
        """Move what is kept to numpy arrays."""
        self.parts = [nested_numpify(part) for part in self.parts]

    def get_arrays(self) -> Any:
        """Everything as arrays; None if nothing was kept."""
        self.to_cpu_and_numpy()
        if not self.parts:
            return None
        return concatenated(self.parts, self.padding_index) if self.do_nested_concat else self.parts
