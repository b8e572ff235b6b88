"""Results that a backward pass computes again from what is kept anyway, rather than being kept themselves.

A norm keeps its input, and GELU keeps its own; the linear layer that reads their result would keep that as well. It
asks `recipe_of` how to compute it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.utils.weak import WeakTensorKeyDictionary

_recipes = WeakTensorKeyDictionary()  # beside the tensors: an attribute would be pickled with them

MIN_VALUES = 1 << 12  # of fewer, the note takes longer than keeping them


class Recipe(NamedTuple):
    """How a tensor was computed.

    Attributes:
        function: gives the tensor.
        inputs: of the function; other operations keep them for the backward pass too.
        version: of the tensor; it has another one once it was changed in place.
    """

    function: Callable[..., Tensor]
    inputs: tuple[Tensor | None, ...]
    version: int


def remember(result: Tensor, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """Note on a result that it is `function(*inputs)`, and return it; on a CPU, where a backward pass may follow."""
    may_be_read = is_untransformed() and type(result) is Tensor and result.is_cpu and result.requires_grad
    if may_be_read and result.numel() >= MIN_VALUES:
        _recipes[result] = Recipe(function, inputs, result._version)
    return result


def recipe_of(x: Tensor) -> Recipe | None:
    """How a tensor can be computed again; None if that is not known, or if it was changed since."""
    recipe: Recipe | None = _recipes.get(x)  # type: ignore[no-untyped-call]  # torch's
    return recipe if recipe is not None and recipe.version == x._version else None


def gradients_of(
    result: Tensor, inputs: Sequence[Tensor], is_needed: Sequence[bool], by_result: Tensor, create_graph: bool = True
) -> list[Tensor | None]:
    """Gradients of a result that was computed again, None for inputs whose gradient is not needed.

    Args:
        result: of operations that autograd has recorded.
        inputs: of these operations.
        is_needed: for each of the inputs.
        by_result: gradient of the result.
        create_graph: the gradients can be differentiated again.
    """
    needed = [x for x, needs in zip(inputs, is_needed, strict=True) if needs]
    found = iter(torch.autograd.grad(result, needed, by_result, create_graph=create_graph))
    return [next(found) if needs else None for needs in is_needed]


def is_untransformed() -> bool:
    """Whether operations run as they are called: in no graph, trace or transformation of functions."""
    return (
        not is_compiling()  # in an export, too
        and torch._C._get_tracing_state() is None
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def is_forward_mode() -> bool:
    """Whether operations also compute directional derivatives: inside a level of forward-mode differentiation."""
    return torch.autograd.forward_ad._current_level >= 0


def is_watched() -> bool:
    """Whether something traces, transforms or watches operations; autograd alone does not count."""
    return bool(
        not is_untransformed()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or is_forward_mode()
    )


def is_plain_autograd() -> bool:
    """Whether operations run as they are called, recorded by autograd alone: nothing traces or watches them."""
    return torch.is_grad_enabled() and not is_watched()
