"""Attention to a window of the past at the cost of the window: queries in blocks, each with two blocks of keys.

A block of `window` queries sees nothing outside itself and the `window` positions before it, so a sequence is handled
as a batch of `N` short ones, by whichever back end, over an overlapping view of the keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.nn.masks import AttentionMask, is_exporting


@dataclass(kw_only=True)
class BlockMask(AttentionMask):
    """What the queries of each block may attend to, among the keys of two blocks; (B * N, 1, window, 2 * window).

    Attributes:
        whole: the mask of the whole sequence.
        rows: B.
        size: queries of a block, the window.
    """

    whole: AttentionMask
    rows: int
    size: int

    @property
    def is_causal_only(self) -> bool:
        """False: each block has its own mask."""
        return False

    def visible(self) -> Tensor:
        """(B * N, 1, window, 2 * window) bool: what causality, window and packing allow."""
        whole, size = self.whole, self.size
        count = self._count()
        first = whole.query_start + size * torch.arange(count, device=self.device)[:, None, None]  # (N, 1, 1)
        steps = torch.arange(2 * size, device=self.device)
        queries, keys = first + steps[:size, None], first - size + steps
        end = whole.key_offset + whole.key_length
        allowed = (keys <= queries) & (keys > queries - size) & (keys >= whole.key_offset) & (keys < end)
        allowed = allowed[None]
        if whole.segments is not None:
            own = span(whole.segments, 1, 0, count * size).view(self.rows, count, size, 1)
            allowed = allowed & (own == self._of_keys(whole.segments)[:, :, None, :])
        allowed = allowed | (queries >= end)  # queries after the end; a softmax over no key would be NaN
        return allowed.expand(self.rows, -1, -1, -1).flatten(0, 1).unsqueeze(1)

    def real_keys(self) -> Tensor | None:
        """(B * N, 2 * window) bool, True for keys that are not padding; None if all are real."""
        is_real = self.whole.attention_mask
        return None if is_real is None else self._of_keys(is_real).flatten(0, 1)

    def _count(self) -> int:
        return -(-self.whole.query_length // self.size)

    def _of_keys(self, values: Tensor) -> Tensor:
        """Values by position (B, positions) as (B, N, 2 * window): those of each block's keys."""
        first, length = self.whole.query_start - self.size, (self._count() + 1) * self.size
        return span(values, 1, first, length).unfold(1, 2 * self.size, self.size)


def should_use(mask: AttentionMask, head_mask: Tensor | None) -> bool:
    """Whether a call can run in blocks and is cheaper so: a long sequence with a window and no custom mask."""
    if is_exporting():  # an exported graph serves any length
        return False
    if mask.window is None or mask.query_length <= 2 * mask.window or not mask.causal:
        return False
    return mask.custom is None and mask.positions is None and (head_mask is None or head_mask.shape[0] == 1)


def to_blocks(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> tuple[Tensor, Tensor, Tensor, AttentionMask]:
    """Cut a call into blocks.

    Args:
        q: queries (B, H, T, D).
        k: keys (B, H, S, D).
        v: values (B, H, S, D).
        mask: of the whole call, with a window.

    Returns:
        Queries (B * N, H, window, D), keys and values (B * N, H, 2 * window, D), and the blocks' mask.
    """
    size = cast(int, mask.window)
    count = -(-q.shape[2] // size)
    first = mask.query_start - size - mask.key_offset
    queries = span(q, 2, 0, count * size)
    queries = queries.reshape(*q.shape[:2], count, size, -1).transpose(1, 2)  # (B, N, H, window, D)
    keys, values = (
        span(x, 2, first, (count + 1) * size).unfold(2, 2 * size, size).permute(0, 2, 1, 4, 3).flatten(0, 1)
        for x in (k, v)
    )
    if "blocks" not in mask.memo:
        mask.memo["blocks"] = BlockMask(
            size, 2 * size, mask.device, window=size, whole=mask, rows=q.shape[0], size=size
        )
    return queries.flatten(0, 1), keys, values, cast(BlockMask, mask.memo["blocks"])


def from_blocks(out: Tensor, rows: int, length: int) -> Tensor:
    """Join results (B * N, H, window, D) to (B, H, T, D)."""
    return out.reshape(rows, -1, *out.shape[1:]).transpose(1, 2).flatten(2, 3)[:, :, :length]


def span(x: Tensor, axis: int, start: int, length: int) -> Tensor:
    """`length` entries from `start` on along an axis, with zeros before the first and after the last."""
    low = max(start, 0)
    before, after = low - start, start + length - x.shape[axis]
    kept = x.narrow(axis, low, x.shape[axis] - low)
    if (
        not torch.compiler.is_compiling() and before == after == 0
    ):  # under torch.compile always pad, so that the graph serves any length
        return kept
    return F.pad(kept, [0, 0] * (x.dim() - 1 - axis) + [before, after])
