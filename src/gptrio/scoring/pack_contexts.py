"""Attention of packed rows: each token attends to those of its own row, beginnings that rows share included."""

from __future__ import annotations

import torch
from torch import Tensor

from gptrio.nn.packed_context import PackedContext, Part, order_of
from gptrio.nn.rotary import RotaryTables
from gptrio.scoring.packing import Pack, PackedRow


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
    parts = [_part_of(rows, read.device) for rows in chunks]
    spans = [[(row.path[row.shared], len(row.path) - row.shared) for row in rows] for rows in chunks]
    order = order_of(spans, read.device)
    every = PackedContext(parts, order, implementation, rotary)
    return every, PackedContext(parts, order[read], implementation, rotary, selected=read)


def _part_of(rows: list[PackedRow], device: torch.device) -> Part:
    """Tables of rows with as many shared tokens each, the longest first."""
    length = len(rows[0].path)
    paths = [row.path + row.path[-1:] * (length - len(row.path)) for row in rows]
    keys = torch.tensor(paths, device=device)
    return Part(keys[:, rows[0].shared :], keys)
