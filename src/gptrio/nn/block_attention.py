"""Causal attention for training on a CPU, in float32: faster than torch's fused kernel, and with dropped weights.

torch drops weights by a path that holds all scores, in float32 too, of 16 bits as well.

Queries run in blocks that leave out the keys after them, and those before their window; few heads at a time, so that
their scores stay in the processor's cache. Weights are computed again for the backward pass. Of dropped ones a byte is
kept that says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from gptrio.kernels.recompute import gradients_of, is_plain_autograd, is_untransformed
from gptrio.kernels.widened import is_widened, result_dtype
from gptrio.nn.dropping import as_factors, draw_kept, dropped_numbers, kept_factor
from gptrio.nn.masks import AttentionMask

_BLOCK = 64  # queries; smaller blocks leave out more keys, and make the products slower
_SCORES = 12 * 64 * 512  # at a time
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LEAST = 256  # queries; with fewer, torch's kernel is as fast where no weight is dropped


class _Plan(NamedTuple):
    """How a call is cut into blocks, and weights dropped.

    Attributes:
        scale: factor of the scores.
        dropped: of 65,536 equally likely numbers, those that drop a weight.
        is_causal: block by block, each without the keys after it.
        window: most keys that a query sees; None for all.
        dtype: of the result.
    """

    scale: float
    dropped: int
    is_causal: bool
    window: int | None
    dtype: torch.dtype

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
    """Whether `attend` takes a call, on a CPU: weights are dropped, or a mask is causal under autograd.

    Without dropped weights, torch's kernel is as good for few queries, and where it has products of 16 bits.
    """
    if torch.compiler.is_compiling():  # nothing may depend on a length that a graph leaves open
        return False
    is_plain = all(type(x) is Tensor and x.is_cpu and x.dtype in _DTYPES for x in (q, k, v))
    is_autocast = torch.is_autocast_enabled("cpu")
    if not is_plain or not 0 <= rate < 1 or not (is_autocast or q.dtype is k.dtype is v.dtype):
        return False
    if rate:
        return is_untransformed()
    is_float32 = result_dtype(q) is torch.float32
    is_long = _is_causal(mask) and q.shape[2] >= _LEAST
    is_trained = is_plain_autograd() and any(x.requires_grad for x in (q, k, v))
    return is_long and is_trained and (is_float32 or is_widened(q, k, v))


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
        (B, H, T, D) in the dtype of autocast, if it is on, or of q.
    """
    is_causal = _is_causal(mask)
    is_span = is_causal and mask.is_causal_span and type(mask) is AttentionMask
    bias = None
    if is_span:
        bias = _relative_bias(mask)
    elif not mask.is_unmasked:
        bias = mask.additive(torch.float32)
    plan = _Plan(scale, dropped_numbers(rate), is_causal, mask.window if is_span else None, result_dtype(q))
    with torch.autocast("cpu", enabled=False):
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
    """Attention part by part, in float32; what was dropped is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, plan: _Plan) -> Tensor:
        """Result (B, H, T, D)."""
        kept: list[Tensor] = []
        scaled, keys, values = _widened(q).mul_(plan.scale), _widened(k), _widened(v).mul_(plan.factor)
        out = q.new_empty((*q.shape[:3], v.shape[-1]), dtype=plan.dtype)
        for part in plan.parts(q.shape, k.shape[2]):
            weights = _weights(scaled, keys, bias, plan, part)
            if plan.dropped:
                kept.append(draw_kept(weights.shape, plan.dropped))
                weights.mul_(as_factors(kept[-1]))
            part.of_queries(out).copy_(weights @ part.of_keys(values))
        ctx.save_for_backward(q, k, v, bias, *kept)
        ctx.plan = plan
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        """Gradients of queries, keys and values."""
        q, k, v, bias, *dropped = ctx.saved_tensors
        plan: _Plan = ctx.plan
        if torch.is_grad_enabled():  # to be differentiated again
            out = _differentiable(q, k, v, bias, plan, dropped)
            return *gradients_of(out, (q, k, v), ctx.needs_input_grad[:3], grad_outputs[0]), None, None
        gradient, values = _widened(grad_outputs[0]).mul_(plan.factor), _widened(v)
        scaled, keys = _widened(q).mul_(plan.scale), _widened(k)
        by_q, by_k, by_v = torch.empty_like(scaled), torch.zeros_like(keys), torch.zeros_like(values)
        for i, part in enumerate(plan.parts(q.shape, k.shape[2])):
            weights, own = _weights(scaled, keys, bias, plan, part), part.of_queries(gradient)
            by_weights = own @ part.of_keys(values).transpose(1, 2)
            kept = as_factors(dropped[i]) if dropped else None
            if kept is not None:
                by_weights.mul_(kept)
            by_scores = torch.ops.aten._softmax_backward_data(by_weights, weights, -1, weights.dtype)
            used = weights if kept is None else weights.mul_(kept)
            part.of_keys(by_v).add_(used.transpose(1, 2) @ own)  # baddbmm_ would multiply head by head
            torch.mul(by_scores @ part.of_keys(keys), plan.scale, out=part.of_queries(by_q))
            part.of_keys(by_k).add_(by_scores.transpose(1, 2) @ part.of_queries(scaled))
        return by_q.to(q.dtype), by_k.to(k.dtype), by_v.to(v.dtype), None, None


def _widened(x: Tensor) -> Tensor:
    """A copy in float32, contiguous."""
    return torch.empty(x.shape, dtype=torch.float32, device=x.device).copy_(x)


def _weights(scaled: Tensor, keys: Tensor, bias: Tensor | None, plan: _Plan, part: _Part) -> Tensor:
    """Weights (N, queries, keys) of a part, of scaled queries."""
    scores = part.of_queries(scaled) @ part.of_keys(keys).transpose(1, 2)
    if bias is not None and bias.dim() == 2:  # by the distance of a key
        count, seen = scores.shape[1:]
        start = bias.shape[1] - _BLOCK - part.queries.start + part.keys.start
        hidden = bias[:count, start : start + seen]
        scores[:, :, -count:] += hidden[:, -count:]
        if plan.window is not None:
            scores[:, :, :count] += hidden[:, :count]
    elif bias is not None:
        rows = part.rows if bias.shape[0] > 1 else slice(None)
        heads = part.heads if bias.shape[1] > 1 else slice(None)
        held = bias[rows, heads, part.queries, part.keys]
        count = len(range(*part.rows.indices(scaled.shape[0])))
        scores = (scores.view(count, -1, *scores.shape[1:]) + held).flatten(0, 1)
    return scores.softmax(-1) if torch.is_grad_enabled() else torch.softmax(scores, -1, out=scores)


def _differentiable(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, plan: _Plan, kept: list[Tensor]) -> Tensor:
    """The result by operations that can be differentiated, with the same weights dropped."""
    out = q.new_zeros((*q.shape[:3], v.shape[-1]), dtype=plan.dtype)
    scaled, keys, values = q.float() * plan.scale, k.float(), v.float() * plan.factor
    for i, part in enumerate(plan.parts(q.shape, k.shape[2])):
        weights = _weights(scaled, keys, bias, plan, part)
        found = (weights * kept[i] if kept else weights) @ part.of_keys(values)
        target = out[part.rows, part.heads, part.queries]
        target.copy_(found.view(target.shape))
    return out
