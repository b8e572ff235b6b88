"""Causal attention for training on a CPU, in float32: faster than torch's fused kernel, and with dropped weights.

Queries run in blocks that leave out the keys after them, and those before their window; few heads at a time, so that
their scores stay in the processor's cache. Weights are computed again for the backward pass. Of dropped ones a byte is
kept that says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from gptrio.kernels.recompute import is_plain_autograd, is_untransformed
from gptrio.nn.dropping import draw_kept, dropped_numbers, kept_factor
from gptrio.nn.masks import AttentionMask

_BLOCK = 64  # queries; smaller blocks leave out more keys, and make the products slower
_SCORES = 12 * 64 * 512  # at a time
_LEAST = 256  # queries; with fewer, torch's kernel is as fast where no weight is dropped


class _Plan(NamedTuple):
    """How a call is cut into blocks, and weights dropped.

    Attributes:
        scale: factor of the scores.
        dropped: of 65,536 equally likely numbers, those that drop a weight.
        is_causal: block by block, each without the keys after it.
        window: most keys that a query sees; None for all.
    """

    scale: float
    dropped: int
    is_causal: bool
    window: int | None

    @property
    def factor(self) -> float:
        """Of a weight that was kept."""
        return kept_factor(self.dropped)

    def parts(self, shape: torch.Size, keys: int) -> Iterator[_Part]:
        """The parts of a call with queries of shape (B, H, T, D)."""
        rows, heads, queries, _ = shape
        blocks = list(self._blocks(queries, keys))
        largest = max((b.stop - b.start) * (k.stop - k.start) for b, k in blocks)
        most = max(_SCORES // largest, 1)  # heads
        rows_at_once, heads_at_once = max(most // heads, 1), min(most, heads)
        for row in range(0, rows, rows_at_once):
            for head in range(0, heads, heads_at_once):
                for block, seen in blocks:
                    yield _Part(slice(row, row + rows_at_once), slice(head, head + heads_at_once), block, seen)

    def _blocks(self, queries: int, keys: int) -> Iterator[tuple[slice, slice]]:
        if not self.is_causal:
            yield slice(0, queries), slice(0, keys)
            return
        for start in range(0, queries, _BLOCK):
            end = min(start + _BLOCK, queries)
            first = 0 if self.window is None else max(start - self.window + 1, 0)
            yield slice(start, end), slice(first, end)


class _Part(NamedTuple):
    """Some heads of some rows, a block of queries, and the keys that it sees."""

    rows: slice
    heads: slice
    queries: slice
    keys: slice

    def of_queries(self, x: Tensor) -> Tensor:
        """Of (B, H, T, D), which is contiguous: (N, queries, D)."""
        return x[self.rows, self.heads].flatten(0, 1)[:, self.queries]

    def of_keys(self, x: Tensor) -> Tensor:
        """Of (B, H, S, D), which is contiguous: (N, keys, D)."""
        return x[self.rows, self.heads].flatten(0, 1)[:, self.keys]


def supports(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, rate: float) -> bool:
    """Whether `attend` takes a call: float32 tensors on a CPU, weights dropped or a causal mask under autograd."""
    if torch.compiler.is_compiling():  # nothing may depend on a length that a graph leaves open
        return False
    is_plain = all(type(x) is Tensor and x.is_cpu and x.dtype is torch.float32 for x in (q, k, v))
    if not is_plain or not 0 <= rate < 1 or torch.is_autocast_enabled("cpu"):
        return False
    if not rate and not (_is_causal(mask) and q.shape[2] >= _LEAST and any(x.requires_grad for x in (q, k, v))):
        return False
    return is_plain_autograd() or (rate > 0 and is_untransformed())


def _is_causal(mask: AttentionMask) -> bool:
    """Whether no query sees a later key, and each has a key of its own."""
    may_see_later_keys = not mask.mask_fully_padded_rows and mask.real_keys() is not None
    starts_together = mask.query_start == mask.key_offset and mask.query_length == mask.key_length
    return mask.causal and starts_together and mask.positions is None and not may_see_later_keys


def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, scale: float, rate: float) -> Tensor:
    """Scaled dot-product attention, whose weights are dropped by torch's global generator.

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
    is_causal = _is_causal(mask)
    is_span = is_causal and mask.is_causal_span and type(mask) is AttentionMask
    bias = None
    if is_span:
        bias = _relative_bias(mask)
    elif not mask.is_unmasked:
        bias = mask.additive(q.dtype)
    plan = _Plan(scale, dropped_numbers(rate), is_causal, mask.window if is_span else None)
    return cast(Tensor, _BlockAttention.apply(q, k, v, bias, plan))  # type: ignore[no-untyped-call]  # torch's


def _relative_bias(mask: AttentionMask) -> Tensor:
    """(_BLOCK, S + _BLOCK): -inf where a key lies after a query or before its window; key S lies at query 0."""
    name = f"bias of blocks of {_BLOCK}"
    if name not in mask.memo:
        steps = torch.arange(mask.key_length + _BLOCK) - mask.key_length - torch.arange(_BLOCK)[:, None]
        hidden = steps > 0 if mask.window is None else (steps > 0) | (steps <= -mask.window)
        mask.memo[name] = torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))
    return cast(Tensor, mask.memo[name])


class _BlockAttention(torch.autograd.Function):
    """Attention part by part; what was dropped is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, plan: _Plan) -> Tensor:
        """Result (B, H, T, D)."""
        given, kept = (q, k, v), list[Tensor]()
        q, k, v = (x.contiguous() for x in given)
        out = q.new_empty((*q.shape[:3], v.shape[-1]))
        for part in plan.parts(q.shape, k.shape[2]):
            weights = _weights(q, k, bias, plan, part)
            if plan.dropped:
                kept.append(draw_kept(weights.shape, plan.dropped))
                weights.mul_(kept[-1])
            target = part.of_queries(out)
            torch.baddbmm(target, weights, part.of_keys(v), beta=0, alpha=plan.factor, out=target)
        ctx.save_for_backward(*given, bias, *kept)
        ctx.plan = plan
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        """Gradients of queries, keys and values."""
        q, k, v, bias, *kept = ctx.saved_tensors
        plan: _Plan = ctx.plan
        if torch.is_grad_enabled():  # to be differentiated again
            out = _differentiable(q, k, v, bias, plan, kept)
            return *torch.autograd.grad(out, (q, k, v), grad_outputs, create_graph=True), None, None
        q, k, v, gradient = (x.contiguous() for x in (q, k, v, grad_outputs[0]))
        by_q, by_k, by_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        factor = plan.factor * plan.scale
        for i, part in enumerate(plan.parts(q.shape, k.shape[2])):
            weights, own = _weights(q, k, bias, plan, part), part.of_queries(gradient)
            by_weights = own @ part.of_keys(v).transpose(1, 2)
            if plan.dropped:
                by_weights.mul_(kept[i])
            by_scores = torch.ops.aten._softmax_backward_data(by_weights, weights, -1, weights.dtype)
            used = weights.mul_(kept[i]) if plan.dropped else weights
            part.of_keys(by_v).baddbmm_(used.transpose(1, 2), own, alpha=plan.factor)
            target = part.of_queries(by_q)
            torch.baddbmm(target, by_scores, part.of_keys(k), beta=0, alpha=factor, out=target)
            part.of_keys(by_k).baddbmm_(by_scores.transpose(1, 2), part.of_queries(q), alpha=factor)
        return by_q, by_k, by_v, None, None


def _weights(q: Tensor, k: Tensor, bias: Tensor | None, plan: _Plan, part: _Part) -> Tensor:
    """Weights (N, queries, keys) of a part."""
    own, seen = part.of_queries(q), part.of_keys(k).transpose(1, 2)
    if bias is not None and bias.dim() == 2:  # by the distance of a key
        start = bias.shape[1] - _BLOCK - part.queries.start + part.keys.start
        count = part.queries.stop - part.queries.start
        hidden = bias[:count, start:][:, : part.keys.stop - part.keys.start]
        scores = torch.baddbmm(hidden.expand(own.shape[0], -1, -1), own, seen, alpha=plan.scale)
    else:
        scores = (own * plan.scale) @ seen
    if bias is not None and bias.dim() == 4:
        rows = part.rows if bias.shape[0] > 1 else slice(None)
        heads = part.heads if bias.shape[1] > 1 else slice(None)
        held = bias[rows, heads, part.queries, part.keys]
        count = len(range(*part.rows.indices(q.shape[0])))
        scores = (scores.view(count, -1, *scores.shape[1:]) + held).flatten(0, 1)
    return scores.softmax(-1) if torch.is_grad_enabled() else torch.softmax(scores, -1, out=scores)


def _differentiable(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, plan: _Plan, kept: list[Tensor]) -> Tensor:
    """The result by operations that can be differentiated, with the same weights dropped."""
    out = q.new_zeros((*q.shape[:3], v.shape[-1]))
    for i, part in enumerate(plan.parts(q.shape, k.shape[2])):
        weights = _weights(q, k, bias, plan, part)
        found = (weights * kept[i] if kept else weights) @ part.of_keys(v) * plan.factor
        target = out[part.rows, part.heads, part.queries]
        target.copy_(found.view(target.shape))
    return out
