"""torch's fused attention on a CPU with derivatives of second order, which its own backward pass does not have."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from gptrio.kernels.recompute import gradients_of

_FLASH = 1  # `torch.nn.attention.SDPBackend.FLASH_ATTENTION`


class _Call(NamedTuple):
    """Arguments of a call besides its tensors."""

    causal: bool
    scale: float


def supports(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float) -> bool:
    """Whether torch computes a call on a CPU by the kernel that `attend` calls; `q`, `k`, `v`, `bias` as there."""
    is_plain = all(type(x) is Tensor and x.is_cpu for x in (q, k, v)) and not torch.is_autocast_enabled("cpu")
    if not is_plain or (bias is not None and (bias.requires_grad or bias.dtype is not q.dtype)):
        return False
    return bool(torch._fused_sdp_choice(q, k, v, bias, 0.0, causal, scale=scale) == _FLASH)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Scaled dot-product attention.

    Args:
        q: queries (B, H, T, D).
        k: keys (B, H, S, D).
        v: values (B, H, S, D).
        bias: (B or 1, H or 1, T, S), added to the scores, or None.
        causal: query i sees keys up to i alone.
        scale: factor of the scores.

    Returns:
        (B, H, T, D).
    """
    return cast(Tensor, _Attention.apply(q, k, v, bias, _Call(causal, scale)))  # type: ignore[no-untyped-call]  # torch's


class _Attention(torch.autograd.Function):
    """The fused kernel; its backward pass is the formula's where that is to be differentiated again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, call: _Call) -> Tensor:
        """Result (B, H, T, D)."""
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, sums = kernel(q, k, v, 0.0, call.causal, attn_mask=bias, scale=call.scale)
        ctx.save_for_backward(q, k, v, bias, out, sums)
        ctx.call = call
        return cast(Tensor, out)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        """Gradients of queries, keys and values."""
        q, k, v, bias, out, sums = ctx.saved_tensors
        call: _Call = ctx.call
        if torch.is_grad_enabled():
            found = gradients_of(_formula(q, k, v, bias, call), (q, k, v), ctx.needs_input_grad[:3], grad_outputs[0])
            return *found, None, None
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return (
            *kernel(*grad_outputs, q, k, v, out, sums, 0.0, call.causal, attn_mask=bias, scale=call.scale),
            None,
            None,
        )


def _formula(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, call: _Call) -> Tensor:
    scores = q @ k.transpose(-1, -2) * call.scale
    if call.causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return (scores if bias is None else scores + bias).softmax(-1) @ v
