"""The one attention call: told what is meant, not how. Every back end equals `eager`.

Shapes: `q` (B, H, T, D); `k`, `v` (B, H, S, D); weights (B, H, T, S); result (B, T, H * D).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.errors import UnsupportedError
from gptrio.nn import flash
from gptrio.nn import sliding_window as local
from gptrio.nn.masks import AttentionMask

Drop = Callable[[Tensor], Tensor]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: AttentionMask,
    *,
    scale: float,
    dropout: float = 0.0,
    head_mask: Tensor | None = None,
    float32_scores: bool = False,
    implementation: str = "eager",
    need_weights: bool = False,
    drop: Drop | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention (Vaswani et al., 2017).

    Args:
        q: queries (B, H, T, D).
        k: keys (B, H, S, D).
        v: values (B, H, S, D).
        mask: what each query may attend to.
        scale: factor of the scores.
        dropout: probability of dropping an attention weight; 0 outside training.
        head_mask: broadcastable to (B, H, T, S); 1 keeps, 0 removes.
        float32_scores: take scores in float32 whatever the inputs' dtype.
        implementation: a name in `IMPLEMENTATIONS`.
        need_weights: also return the weights; computes this call eagerly.
        drop: what drops weights at the rate `dropout` where they are at hand; `torch.nn.functional.dropout` if None.

    Returns:
        The result (B, T, H * D), and the weights (B, H, T, S) or None.
    """
    if need_weights or (head_mask is not None and head_mask.shape[-2:] != (1, 1)):
        implementation = "eager"
    if implementation == flash.NAME and not flash.can_express(mask):
        implementation = "sdpa"
    rows, length = q.shape[0], q.shape[2]
    in_blocks = implementation != flash.NAME and not need_weights and local.pays_off(mask, head_mask)
    if in_blocks:
        q, k, v, mask = local.to_blocks(q, k, v, mask)
    weights: Tensor | None
    if implementation == "eager":
        out, weights = eager(q, k, v, mask, scale, dropout, head_mask, float32_scores, drop)
    else:
        out, weights = IMPLEMENTATIONS[implementation](q, k, v, mask, scale, dropout, head_mask, float32_scores)
    if in_blocks:
        out = local.from_blocks(out, rows, length)
    return out.transpose(1, 2).flatten(2), weights if need_weights else None


def split_heads(x: Tensor, head_width: int) -> Tensor:
    """(B, T, H * D) to (B, H, T, D)."""
    return x.view(*x.shape[:2], -1, head_width).transpose(1, 2)


def check_implementation(name: str) -> str:
    """Return `name` if it is an attention back end.

    Raises:
        UnsupportedError: it is not.
        MissingDependencyError: it needs a package that is not there.
    """
    if name == flash.NAME:
        flash.load()
    if name not in IMPLEMENTATIONS:
        raise UnsupportedError(f"attn_implementation={name!r} is not known; use one of {', '.join(IMPLEMENTATIONS)}")
    return name


def eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: AttentionMask,
    scale: float,
    dropout: float,
    head_mask: Tensor | None,
    float32_scores: bool,
    drop: Drop | None = None,
) -> tuple[Tensor, Tensor]:
    """The formula step by step; the only back end that has weights to show."""
    scores = _float32_scores(q, k, scale) if float32_scores else (q @ k.transpose(-1, -2)) * scale
    if not mask.sees_all:
        scores = scores + mask.additive(scores.dtype)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype)
    if drop is not None:
        weights = drop(weights)
    elif dropout:
        weights = F.dropout(weights, dropout)
    if head_mask is not None:
        weights = weights * head_mask.to(weights.dtype)
    return weights @ v, weights


def _float32_scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):
        return (q.float() @ k.float().transpose(-1, -2)) * scale


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: AttentionMask,
    scale: float,
    dropout: float,
    head_mask: Tensor | None,
    float32_scores: bool,
) -> tuple[Tensor, Tensor | None]:
    """`torch.nn.functional.scaled_dot_product_attention`, whose fused kernels take scores in float32."""
    if (q.requires_grad or k.requires_grad or v.requires_grad) and mask.leaves_only_padding():
        # fused kernels keep the log of a sum of tiny values for the way back, and lose the number of keys in it
        return eager(q, k, v, mask, scale, dropout, head_mask, float32_scores)
    bias, causal = None, False
    if mask.is_square_causal and q.shape[-2] > 1:
        causal = True
    elif not mask.sees_all:
        bias = mask.additive(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, is_causal=causal, scale=scale)
    return (out if head_mask is None else out * head_mask.to(out.dtype)), None


Implementation = Callable[
    [Tensor, Tensor, Tensor, AttentionMask, float, float, Tensor | None, bool], tuple[Tensor, Tensor | None]
]
IMPLEMENTATIONS: dict[str, Implementation] = {"eager": eager, "sdpa": sdpa, flash.NAME: flash.flash}
