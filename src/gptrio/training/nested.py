"""What loops of one's own do with nested tuples, lists and mappings of tensors, by the names of Transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from gptrio.errors import InputTypeError
from gptrio.training.arrays import PADDING, as_arrays, joined, plain, rows_of, with_parts

find_batch_size = rows_of
denumpify_detensorize = plain
_NESTED = (Mapping, tuple, list)


def nested_detach(tensors: Any) -> Any:
    """The tensors without their history."""
    if isinstance(tensors, _NESTED):
        return with_parts(nested_detach, tensors)
    return tensors.detach() if isinstance(tensors, Tensor) else tensors


def nested_numpify(tensors: Any) -> Any:
    """Numpy arrays of the tensors; bfloat16, which numpy lacks, becomes float32."""
    return with_parts(nested_numpify, tensors) if isinstance(tensors, _NESTED) else as_arrays(tensors)


def nested_concat(tensors: Any, new_tensors: Any, padding_index: int = PADDING) -> Any:
    """Tensors or arrays of two structures alike, joined along rows.

    Args:
        tensors: the first rows.
        new_tensors: those that follow.
        padding_index: fills the second axis of the shorter up.

    Raises:
        InputTypeError: leaves are neither tensors nor arrays, or the structures differ.
    """
    both_are_tensors = isinstance(tensors, Tensor) and isinstance(new_tensors, Tensor)
    if not both_are_tensors and type(tensors) is not type(new_tensors):
        raise InputTypeError(f"a {type(tensors).__name__} and a {type(new_tensors).__name__} cannot be joined")
    if isinstance(tensors, Mapping):
        made = {name: nested_concat(value, new_tensors[name], padding_index) for name, value in tensors.items()}
        return made if type(tensors) is dict else type(tensors)(made)  # type: ignore[call-arg]  # of BatchEncoding and the like
    if isinstance(tensors, (tuple, list)):
        return type(tensors)(
            nested_concat(one, other, padding_index) for one, other in zip(tensors, new_tensors, strict=False)
        )
    if not isinstance(tensors, (Tensor, np.ndarray)):
        raise InputTypeError(f"a {type(tensors).__name__} cannot be joined; tensors and arrays can")
    return joined((tensors, new_tensors), padding_index)


class EvalLoopContainer:
    """Collects what a loop over batches returns.

    Args:
        do_nested_concat: whether the result is one structure of arrays; else it is a list with one for each batch.
        padding_index: fills shorter rows up.
    """

    def __init__(self, do_nested_concat: bool = True, padding_index: int = PADDING) -> None:
        self.do_nested_concat, self.padding_index = do_nested_concat, padding_index
        self.tensors: Any = None
        self.arrays: Any = None

    def add(self, tensors: Any) -> None:
        """Keep what a batch returned, where it is."""
        self.tensors = self._with(self.tensors, tensors if self.do_nested_concat else [tensors])

    def to_cpu_and_numpy(self) -> None:
        """Move what is kept to numpy arrays."""
        if self.tensors is not None:
            self.arrays = self._with(self.arrays, nested_numpify(self.tensors))
            self.tensors = None

    def get_arrays(self) -> Any:
        """Everything as arrays; None if nothing was kept."""
        self.to_cpu_and_numpy()
        return self.arrays

    def _with(self, known: Any, new: Any) -> Any:
        if known is None:
            return new
        return nested_concat(known, new, self.padding_index) if self.do_nested_concat else [*known, *new]


def get_model_param_count(model: nn.Module, trainable_only: bool = False) -> int:
    """Number of the values of a model, or of those that are trained."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad or not trainable_only)
