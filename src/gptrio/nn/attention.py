"""The one attention call. Its arguments say what is computed, not how; every back end equals `eager`.

Shapes: `q` (B, H, T, D); `k`, `v` (B, H, S, D); weights (B, H, T, S); result (B, T, H * D).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.errors import UnsupportedError
from gptrio.kernels.linear import prefill_kernels
from gptrio.kernels.recompute import is_forward_mode, is_plain_autograd
from gptrio.kernels.widened import is_widened, matmul, result_dtype
from gptrio.nn import block_attention, flash, sliding_window, twice_differentiable
from gptrio.nn.attention_interface import ALL_ATTENTION_FUNCTIONS, call_function, function_of, registered_function
from gptrio.nn.masks import AttentionMask

Drop = Callable[[Tensor], Tensor]


class AttentionOptions(NamedTuple):
    """How a layer attends.

    Attributes:
        scale: factor of the scores.
        window: most positions a query sees, itself included; None for all.
        dropout: probability of dropping an attention weight; 0 outside training.
        float32_scores: compute scores in float32 whatever the inputs' dtype.
        drop: drops weights at the rate `dropout` in the eager back end; `torch.nn.functional.dropout` if None.
        need_weights: also return the weights, which only the eager back end computes.
        module: the layer, for functions of users.
        causal: false for a layer that `sdpa` lets see later keys, where nothing but causality masks any.
    """

    scale: float
    window: int | None = None
    dropout: float = 0.0
    float32_scores: bool = False
    drop: Drop | None = None
    need_weights: bool = False
    module: Any = None
    causal: bool = True


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: AttentionMask,
    options: AttentionOptions,
    head_mask: Tensor | None = None,
    implementation: str = "eager",
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention (Vaswani et al., 2017).

    Args:
        q: queries (B, H, T, D).
        k: keys (B, H, S, D).
        v: values (B, H, S, D).
        mask: what each query may attend to, the window included.
        options: of the layer.
        head_mask: broadcastable to (B, H, T, S); 1 keeps, 0 removes.
        implementation: a name in `IMPLEMENTATIONS`, or of a function in `AttentionInterface`.

    Returns:
        The result (B, T, H * D), and the weights (B, H, T, S) or None.
    """
    function = function_of(options.module, implementation)
    if function is not None:
        return call_function(function, implementation, q, k, v, mask, options, head_mask)
    if not options.causal and implementation == "sdpa" and mask.is_square_causal:
        mask = replace(mask, causal=False, memo={})
    if options.need_weights or (head_mask is not None and head_mask.shape[-2:] != (1, 1)):
        implementation = "eager"
    if implementation == flash.NAME and not flash.can_express(mask):
        implementation = "sdpa"
    compiled = prefill_kernels() if implementation == "sdpa" and not options.dropout and head_mask is None else None
    if compiled is not None and compiled.supports_attention(q, k, v) and mask.is_causal_span:
        return compiled.attend(q, k, v, options.scale, mask.query_start - mask.key_offset, mask.window), None
    rows, length = q.shape[0], q.shape[2]
    in_blocks = implementation != flash.NAME and not options.need_weights and sliding_window.should_use(mask, head_mask)
    if in_blocks:
        q, k, v, mask = sliding_window.to_blocks(q, k, v, mask)
    out, weights = IMPLEMENTATIONS[implementation](q, k, v, mask, options, head_mask)
    if in_blocks:
        out = sliding_window.from_blocks(out, rows, length)
    return out.transpose(1, 2).flatten(2), weights if options.need_weights else None


def split_heads(x: Tensor, head_width: int) -> Tensor:
    """(B, T, H * D) to (B, H, T, D)."""
    return x.view(*x.shape[:2], -1, head_width).transpose(1, 2)


def check_implementation(name: str) -> str:
    """Return `name` if it is an attention back end.

    Raises:
        UnsupportedError: it is not.
        MissingDependencyError: it needs a package that is not installed.
    """
    if registered_function(name) is not None:
        return name
    if name == flash.NAME:
        flash.load()
    if name not in IMPLEMENTATIONS:
        known = ", ".join(dict.fromkeys([*IMPLEMENTATIONS, *ALL_ATTENTION_FUNCTIONS]))
        raise UnsupportedError(
            f"attn_implementation={name!r} is not known; use one of {known}, or register a function of your own under "
            "that name with AttentionInterface.register"
        )
    return name


def eager(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, options: AttentionOptions, head_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The formula step by step; the only back end that returns weights."""
    scale = options.scale
    scores = _float32_scores(q, k, scale) if options.float32_scores else matmul(q, k.transpose(-1, -2)) * scale
    if not mask.is_unmasked:
        scores = scores + mask.additive(scores.dtype)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype)
    if options.drop is not None:
        weights = options.drop(weights)
    elif options.dropout:
        weights = F.dropout(weights, options.dropout)
    if head_mask is not None:
        weights = weights * head_mask.to(weights.dtype)
    return matmul(weights, v), weights


def _float32_scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):
        return (q.float() @ k.float().transpose(-1, -2)) * scale


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, options: AttentionOptions, head_mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """`torch.nn.functional.scaled_dot_product_attention`, whose fused kernels compute scores in float32.

    Training on a CPU runs in blocks of its own (`block_attention`), and in float32 where 16 bits are emulated.
    """
    if is_forward_mode():  # which fused kernels do not have
        return eager(q, k, v, mask, options, head_mask)
    is_trained = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if head_mask is None and block_attention.supports(q, k, v, mask, options.dropout):
        return block_attention.attend(q, k, v, mask, options.scale, options.dropout), None
    if is_trained and is_widened(q, k, v):
        dtype = result_dtype(q)
        with torch.autocast("cpu", enabled=False):
            out, _ = sdpa(q.float(), k.float(), v.float(), mask, options, head_mask)
        return out.to(dtype), None
    if is_trained and mask.has_fully_padded_rows():
        # the backward pass of fused kernels is wrong for fully padded rows: their log-sum-exp underflows
        return eager(q, k, v, mask, options, head_mask)
    bias, causal = None, False
    if mask.is_square_causal and q.shape[-2] > 1:
        causal = True
    elif not mask.is_unmasked:
        bias = mask.additive(q.dtype)
    fused = q, k, v, bias, causal, options.scale
    if is_trained and not options.dropout and is_plain_autograd() and twice_differentiable.supports(*fused):
        out = twice_differentiable.attend(*fused)
    else:
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=options.dropout, is_causal=causal, scale=options.scale
        )
    return (out if head_mask is None else out * head_mask.to(out.dtype)), None


Implementation = Callable[
    [Tensor, Tensor, Tensor, AttentionMask, AttentionOptions, Tensor | None], tuple[Tensor, Tensor | None]
]
IMPLEMENTATIONS: dict[str, Implementation] = {"eager": eager, "sdpa": sdpa, flash.NAME: flash.flash}
