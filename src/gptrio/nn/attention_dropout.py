"""Attention with dropped weights on a CPU, for which torch has no fused kernel, at about half of its time and memory.

Queries run in blocks that leave out the keys after them, each weight is kept once, with a byte for whether it was
dropped, and a random number serves four of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from gptrio.nn.masks import AttentionMask

_BLOCK = 128  # queries; smaller blocks leave out more keys, and make the products slower
_VALUES = 1 << 16  # of a random number


class _Plan(NamedTuple):
    """How queries are cut into blocks, and weights dropped.

    Attributes:
        scale: factor of the scores.
        dropped: of 65,536 equally likely numbers, those that drop a weight.
        is_causal: block by block, each without the keys after it.
    """

    scale: float
    dropped: int
    is_causal: bool

    @property
    def factor(self) -> float:
        """Of a weight that was kept."""
        return _VALUES / (_VALUES - self.dropped)

    def blocks(self, queries: int, keys: int) -> Iterator[tuple[slice, int]]:
        """The queries of each block, and how many keys it sees."""
        if not self.is_causal:
            yield slice(0, queries), keys
            return
        for start in range(0, queries, _BLOCK):
            end = min(start + _BLOCK, queries)
            yield slice(start, end), end


def supports(q: Tensor, k: Tensor, rate: float) -> bool:
    """Whether `attend` takes a call: plain float32 tensors on a CPU, some weights of which are dropped."""
    plain = q.is_cpu and q.dtype is k.dtype is torch.float32 and type(q) is type(k) is Tensor
    is_transformed = torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None
    return plain and 0 < rate < 1 and not is_transformed and torch._C._get_tracing_state() is None


def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, scale: float, rate: float) -> Tensor:
    """Scaled dot-product attention whose weights are dropped by torch's global generator.

    Args:
        q: queries (B, H, T, D).
        k: keys (B, H, S, D).
        v: values (B, H, S, D).
        mask: what each query may attend to.
        scale: factor of the scores.
        rate: probability of dropping a weight, rounded to a multiple of 1 / 65,536.

    Returns:
        (B, H, T, D).
    """
    may_see_later_keys = not mask.mask_fully_padded_rows and mask.real_keys() is not None
    starts_together = mask.query_start == mask.key_offset and mask.query_length == mask.key_length
    is_causal = mask.causal and starts_together and mask.positions is None and not may_see_later_keys
    bias = None
    if is_causal and mask.is_square_causal:
        bias = torch.full((_BLOCK, _BLOCK), float("-inf")).triu(1)
    elif not mask.is_unmasked:
        bias = mask.additive(q.dtype)
    plan = _Plan(scale, min(round(rate * _VALUES), _VALUES - 1), is_causal)
    return cast(Tensor, _DroppedAttention.apply(q, k, v, bias, plan))  # type: ignore[no-untyped-call]  # torch's


class _DroppedAttention(torch.autograd.Function):
    """Attention block by block; weights and what was dropped are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, plan: _Plan) -> Tensor:
        """Result (B, H, T, D)."""
        parts, kept = [], []
        for rows, keys in plan.blocks(q.shape[2], k.shape[2]):
            weights = _weights(q, k, bias, plan, rows, keys)
            keep = _draw(weights.shape, plan.dropped)
            parts.append((weights * keep) @ v[:, :, :keys])
            kept += [weights, keep]
        ctx.save_for_backward(q, k, v, bias, *kept)
        ctx.plan = plan
        return torch.cat(parts, 2).mul_(plan.factor)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        """Gradients of queries, keys and values."""
        q, k, v, bias, *kept = ctx.saved_tensors
        plan: _Plan = ctx.plan
        if torch.is_grad_enabled():  # to be differentiated again
            out = _differentiable(q, k, v, bias, plan, kept[1::2])
            return *torch.autograd.grad(out, (q, k, v), grad_outputs, create_graph=True), None, None
        scaled = grad_outputs[0] * plan.factor
        by_q = torch.empty_like(q, memory_format=torch.contiguous_format)
        by_k, by_v = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (k, v))
        blocks = plan.blocks(q.shape[2], k.shape[2])
        for (rows, keys), weights, keep in zip(blocks, kept[::2], kept[1::2], strict=True):
            gradient = scaled[:, :, rows]
            by_v[:, :, :keys] += (weights * keep).transpose(-1, -2) @ gradient
            by_weights = (gradient @ v[:, :, :keys].transpose(-1, -2)).mul_(keep)
            by_scores = torch.ops.aten._softmax_backward_data(by_weights, weights, -1, weights.dtype).mul_(plan.scale)
            by_q[:, :, rows] = by_scores @ k[:, :, :keys]
            by_k[:, :, :keys] += by_scores.transpose(-1, -2) @ q[:, :, rows]
        return by_q, by_k, by_v, None, None


def _weights(q: Tensor, k: Tensor, bias: Tensor | None, plan: _Plan, rows: slice, keys: int) -> Tensor:
    """Weights (B, H, rows, keys) of a block."""
    scores = (q[:, :, rows] * plan.scale) @ k[:, :, :keys].transpose(-1, -2)
    count = rows.stop - rows.start
    if bias is not None and bias.dim() == 2:  # of a block's queries to its own keys
        scores[..., keys - count :] += bias[:count, :count]
    elif bias is not None:
        scores = scores.add_(bias[:, :, rows, :keys])
    return scores.softmax(-1) if torch.is_grad_enabled() else torch.softmax(scores, -1, out=scores)


def _draw(shape: torch.Size, dropped: int) -> Tensor:
    """Bool of a shape, False with a probability of `dropped` in 65,536; from torch's global generator."""
    count = shape.numel()
    numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return (numbers.view(torch.int16)[:count] >= dropped - _VALUES // 2).view(shape)


def _differentiable(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, plan: _Plan, kept: list[Tensor]) -> Tensor:
    """The result by operations that can be differentiated, with the same weights dropped."""
    blocks = plan.blocks(q.shape[2], k.shape[2])
    parts = [
        (_weights(q, k, bias, plan, rows, keys) * keep) @ v[:, :, :keys]
        for (rows, keys), keep in zip(blocks, kept, strict=True)
    ]
    return torch.cat(parts, 2) * plan.factor
