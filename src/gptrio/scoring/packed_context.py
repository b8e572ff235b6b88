"""Attention of packed rows: each token attends to those of its own row, beginnings that rows share included."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptrio.errors import UnsupportedError
from gptrio.nn.attention import AttentionOptions, attention
from gptrio.nn.masks import AttentionMask
from gptrio.nn.rotary import RotaryTables
from gptrio.scoring.packing import Pack, PackedRow


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
    cross: None = None
    _copies: dict[torch.device, PackedContext] = field(default_factory=dict)

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
        """See `AttentionContext.attend`; shapes are (1, H, N, D)."""
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

    @classmethod
    def of(cls, rows: list[PackedRow], device: torch.device) -> Part:
        """Tables of rows with as many shared tokens each, the longest first."""
        length = len(rows[0].path)
        paths = [row.path + row.path[-1:] * (length - len(row.path)) for row in rows]
        keys = torch.tensor(paths, device=device)
        return cls(keys[:, rows[0].shared :], keys)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, implementation: str) -> Tensor:
        """Results (B * T, H * D) of queries, keys and values (N, H, D)."""
        q, k, v = _gathered(q, self.queries), _gathered(k, self.keys), _gathered(v, self.keys)
        queries, keys = self.queries.shape[1], self.keys.shape[1]
        mask = AttentionMask(queries, keys, q.device, query_start=keys - queries)
        if options.window is not None:
            mask = mask.for_layer(keys, 0, options.window)
            k, v = k[:, :, -mask.key_length :], v[:, :, -mask.key_length :]
        return attention(q, k, v, mask, options, implementation=implementation)[0].flatten(0, 1)


def _gathered(x: Tensor, places: Tensor) -> Tensor:
    """(N, H, D) and places (B, T) to (B, H, T, D)."""
    return x.index_select(0, places.flatten()).view(*places.shape, *x.shape[1:]).transpose(1, 2)


def pack_contexts(
    pack: Pack, read: Tensor, most_keys: int, implementation: str, rotary: RotaryTables | None
) -> tuple[PackedContext, PackedContext]:
    """The contexts of all blocks but the last, and of the last, where only the outputs at `read` (U,) are needed.

    Args:
        pack: tokens and rows.
        read: places in the pack.
        most_keys: keys of one call of attention, padding included, unless a row alone has more.
        implementation: attention back end.
        rotary: cosine and sine tables of the tokens, or None.
    """
    chunks: list[list[PackedRow]] = []
    for rows in pack.parts():
        size = max(most_keys // len(rows[0].path), 1)
        chunks += [rows[i : i + size] for i in range(0, len(rows), size)]
    parts = [Part.of(rows, read.device) for rows in chunks]
    order = torch.tensor(_order(chunks, len(pack.ids)), device=read.device)
    every = PackedContext(parts, order, implementation, rotary)
    return every, PackedContext(parts, order[read], implementation, rotary, selected=read)


def _order(parts: list[list[PackedRow]], tokens: int) -> list[int]:
    """Where each of the tokens (N,) lies among the queries of all parts, padding included."""
    order, offset = [0] * tokens, 0
    for rows in parts:
        for row in rows:
            new = row.path[row.shared :]  # places that follow each other
            order[new[0] : new[-1] + 1] = range(offset, offset + len(new))
            offset += len(rows[0].path) - row.shared
    return order
