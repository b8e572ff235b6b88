"""What loops of one's own do with nested tuples, lists and mappings of tensors, by the names of Transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from gptrio.errors import InputTypeError
from gptrio.training.arrays import PADDING, as_arrays, concatenated, detached, leaves, plain, rows_of

find_batch_size = rows_of
denumpify_detensorize = plain
nested_detach = detached
nested_numpify = as_arrays


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


def get_model_param_count(model: nn.Module, trainable_only: bool = False) -> int:
    """Number of the values of a model, or of those that are trained."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad or not trainable_only)
