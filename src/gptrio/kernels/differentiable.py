"""Linear layers under autograd on a CPU: with less kept for the backward pass, and no emulated products.

- Where products of 16 bits are emulated, they are `widened`, and those of the gradients as well. Under autocast the
  weights are not rounded at all, nor are their gradients.
- An input that can be computed again (`recompute`) is not kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from gptrio.kernels import widened
from gptrio.kernels.recompute import Recipe, is_plain_autograd, recipe_of

MIN_WEIGHTS, MIN_ROWS = 1 << 16, 16  # with fewer in float32, a call in Python takes as long as it saves
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _Call(NamedTuple):
    """What a product is, beside its tensors.

    Attributes:
        transposed: the weight is stored (in, out).
        dtype: of the result.
        recipe: of the input.
    """

    transposed: bool
    dtype: torch.dtype
    recipe: Recipe | None


def supports(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> bool:
    """Whether `linear` takes a call and gains by it: plain tensors on a CPU, some with gradients, large or emulated."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    is_plain = (
        is_plain_autograd()
        and x.dim() > 0
        and x.numel() > 0
        and x.shape[-1] == weight.shape[0 if transposed else -1]
        and all(type(t) in (Tensor, nn.Parameter) and t.is_cpu and t.dtype in _DTYPES for t in tensors)
        and any(t.requires_grad for t in tensors)
        and (torch.is_autocast_enabled("cpu") or all(t.dtype is x.dtype for t in tensors))
    )
    if not is_plain or widened.is_widened(*tensors):
        return is_plain
    is_large = weight.numel() >= MIN_WEIGHTS and x.numel() >= MIN_ROWS * x.shape[-1]
    return is_large and widened.result_dtype(x) is torch.float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """Compute `x @ W + bias`, where `supports` says so.

    Args:
        x: (..., in).
        weight: (out, in), or (in, out) if `transposed`.
        bias: (out,) or None.
        transposed: the weight is stored (in, out).

    Returns:
        (..., out) in the dtype of autocast, if it is on, or of x.
    """
    call = _Call(transposed, widened.result_dtype(x), recipe_of(x))
    with torch.autocast("cpu", enabled=False):
        return cast(Tensor, _Linear.apply(x, weight, bias, call))  # type: ignore[no-untyped-call]  # torch's


class _Linear(torch.autograd.Function):
    """The product, whose backward pass computes the input again where that is known how."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, call: _Call) -> Tensor:
        """(..., in) to (..., out)."""
        ctx.call = call
        ctx.shape, ctx.dtype = x.shape, x.dtype
        inputs: tuple[Tensor | None, ...] = ()
        if ctx.needs_input_grad[1]:
            inputs = (x,) if call.recipe is None else call.recipe.inputs
        ctx.save_for_backward(weight, *inputs)
        return widened.linear(x, weight.t() if call.transposed else weight, bias, call.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        """Gradients of the input, the weight and the bias."""
        weight, *inputs = ctx.saved_tensors
        call: _Call = ctx.call
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        by_x = by_weight = by_bias = None
        with torch.autocast("cpu", enabled=False):
            by_out = _rows(grad_outputs[0])
            if needs_x:
                by_x = (by_out @ _out_in(weight, call)).to(ctx.dtype).view(ctx.shape)
            if needs_weight:
                x = _rows(inputs[0] if call.recipe is None else call.recipe.function(*inputs))
                by_weight = (x.t() @ by_out if call.transposed else by_out.t() @ x).to(weight.dtype)
            if needs_bias:
                by_bias = by_out.sum(0).to(weight.dtype)
        return by_x, by_weight, by_bias, None


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).float()


def _out_in(weight: Tensor, call: _Call) -> Tensor:
    return (weight.t() if call.transposed else weight).float()
