"""Attention of packed rows: each token attends to those of its own row, beginnings that rows share included."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptrio.errors import UnsupportedError
from gptrio.nn.attention import AttentionOptions, attention
from gptrio.nn.context import CrossAttention
from gptrio.nn.masks import AttentionMask
from gptrio.nn.rotary import RotaryTables


@dataclass
class PackedContext:
    """The `AttentionContext` of packed rows: one row of tokens (1, N), of which each attends to those of its own row.

    Attributes:
        parts: rows whose attention is one call.
        order: (N',) place of each selected token in the results of all parts.
        implementation: attention back end.
        rotary: cosine and sine tables, or None.
        selected: (N',) tokens whose output is needed; None for all.
    """

    parts: list[Part]
    order: Tensor
    implementation: str
    rotary: RotaryTables | None = None
    selected: Tensor | None = None
    cache: None = None
    need_weights: bool = False
    cross: CrossAttention | None = None
    _copies: dict[torch.device, PackedContext] = field(default_factory=dict)

    @classmethod
    def of_lengths(
        cls, lengths: list[int], implementation: str, rotary: RotaryTables | None, device: torch.device
    ) -> PackedContext:
        """The context of rows of these lengths that share nothing; rows of similar length attend in one call."""
        starts = list(accumulate(lengths, initial=0))
        parts, spans = list[Part](), list[list[tuple[int, int]]]()
        left = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        while left:
            longest = lengths[left[0]]
            rows = [row for row in left if 2 * lengths[row] > longest]
            left = left[len(rows) :]
            spans.append([(starts[row], lengths[row]) for row in rows])
            last = torch.tensor([[starts[row], starts[row + 1] - 1] for row in rows], device=device)
            places = torch.minimum(last[:, :1] + torch.arange(longest, device=device), last[:, 1:])
            parts.append(Part(places, places))
        return cls(parts, order_of(spans, device), implementation, rotary)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> PackedContext:
        """The same forward for layers on another device; see `DenseContext.to`."""
        device = torch.empty(0, device=device).device  # with its index
        if device == self.order.device:
            return self

        def moved(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=non_blocking)

        if device not in self._copies:
            self._copies[device] = replace(
                self,
                parts=[Part(*map(moved, part)) for part in self.parts],
                order=moved(self.order),
                rotary=None if self.rotary is None else (moved(self.rotary[0]), moved(self.rotary[1])),
                selected=None if self.selected is None else moved(self.selected),
                _copies={},
            )
        return self._copies[device]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer_idx: int, options: AttentionOptions) -> tuple[Tensor, None]:
        """See `AttentionContext.attend`; shapes are (1, H, N, D). As in a padded batch, all layers are causal."""
        options = options._replace(causal=True)
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (N, H, D)
        results = [part.attend(q, k, v, options, self.implementation) for part in self.parts]
        return torch.cat(results).index_select(0, self.order).unsqueeze(0), None

    def attend_to_encoder(self, *_: Any) -> tuple[Tensor, None]:
        """Refuse: texts are scored without an encoder."""
        raise UnsupportedError("texts are scored without an encoder's states; call the model's forward with them")

    def select(self, x: Tensor) -> Tensor:
        """See `AttentionContext.select`."""
        return x if self.selected is None else x.index_select(1, self.selected)


class Part(NamedTuple):
    """Rows of a pack that attend in one call: tables of places, padded on the right, where no real query looks.

    Attributes:
        queries: (B, T) places of the new tokens.
        keys: (B, S) places of all tokens; the first S - T are shared.
    """

    queries: Tensor
    keys: Tensor

    def attend(self, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, implementation: str) -> Tensor:
        """Results (B * T, H * D) of queries, keys and values (N, H, D)."""
        q, k, v = _gathered(q, self.queries), _gathered(k, self.keys), _gathered(v, self.keys)
        queries, keys = self.queries.shape[1], self.keys.shape[1]
        mask = AttentionMask(queries, keys, q.device, query_start=keys - queries)
        if options.window is not None:
            mask = mask.for_layer(keys, 0, options.window)
            k, v = k[:, :, -mask.key_length :], v[:, :, -mask.key_length :]
        return attention(q, k, v, mask, options, implementation=implementation)[0].flatten(0, 1)


def order_of(parts: list[list[tuple[int, int]]], device: torch.device) -> Tensor:
    """Where each of N tokens lies among the queries of all parts, padding included: (N,).

    Args:
        parts: of each row the place of its first new token, and the number of them; the longest row of a part first.
        device: of the result.
    """
    order, offset = [0] * sum(count for rows in parts for _, count in rows), 0
    for rows in parts:
        for first, count in rows:
            order[first : first + count] = range(offset, offset + count)
            offset += rows[0][1]
    return torch.tensor(order, device=device)


def _gathered(x: Tensor, places: Tensor) -> Tensor:
    """(N, H, D) and places (B, T) to (B, H, T, D)."""
    return x.index_select(0, places.flatten()).view(*places.shape, *x.shape[1:]).transpose(1, 2)
