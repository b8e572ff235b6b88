"""Which tokens run in one forward: rows laid end to end, with beginnings that neighbours share computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

SHARED = 0.2  # least share of a row's tokens that is worth being taken over from the row before it
_PADDING = 1.25  # most keys and queries of a part, padding included, for each that is needed


@dataclass(frozen=True)
class Row:
    """Ids of which the model predicts those from `first` on, each from all before it.

    Attributes:
        ids: the model reads all but the last.
        first: at least 1.
    """

    ids: Sequence[int]
    first: int


@dataclass(frozen=True)
class PackedRow:
    """A row in a pack.

    Attributes:
        index: of the row among all.
        path: the place in the pack of each token that the model reads, in order; those before `shared` belong to rows
            before it.
        shared: number of tokens that other rows have computed.
    """

    index: int
    path: list[int]
    shared: int


@dataclass
class Pack:
    """Tokens (N,) of several rows for one forward, none of them twice where rows begin alike.

    Attributes:
        ids: (N,) tokens.
        positions: (N,) their positions in their rows.
        rows: the rows, by their ids.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rows: list[PackedRow] = field(default_factory=list)

    def add(self, index: int, ids: Sequence[int], path: list[int]) -> PackedRow:
        """Append a row that reads `ids`, of which the first are already at the places `path`."""
        shared, start = len(path), len(self.ids)
        new = range(start, start + len(ids) - shared)
        self.ids += ids[shared:]
        self.positions += range(shared, len(ids))
        self.rows.append(PackedRow(index, [*path, *new], shared))
        return self.rows[-1]

    def parts(self) -> list[list[PackedRow]]:
        """Rows whose attention is one call, as they share as many tokens and have similar lengths."""
        rows = [row for row in self.rows if len(row.path) > row.shared]
        rows.sort(key=lambda row: (row.shared, -len(row.path)))
        parts: list[list[PackedRow]] = []
        for row in rows:
            if parts and _fits(parts[-1][0], row):
                parts[-1].append(row)
            else:
                parts.append([row])
        return parts


def _fits(longest: PackedRow, row: PackedRow) -> bool:
    new, most = len(row.path) - row.shared, len(longest.path) - longest.shared
    return row.shared == longest.shared and most <= max(_PADDING * new, new + 8)


def pack_rows(rows: Sequence[Row], batch_tokens: int, share: bool = True) -> Iterator[Pack]:
    """Distribute rows over packs of at most `batch_tokens` tokens, or of one row that is longer.

    Args:
        rows: what is to be predicted.
        batch_tokens: most tokens of a forward.
        share: compute beginnings that rows share once; otherwise the longest rows come first.
    """
    predicted = [i for i, row in enumerate(rows) if len(row.ids) > row.first]
    order = sorted(predicted, key=(lambda i: tuple(rows[i].ids)) if share else (lambda i: -len(rows[i].ids)))
    pack, before = Pack(), PackedRow(-1, [], 0)
    for i in order:
        ids = rows[i].ids[:-1]
        path = _shared_path(rows[before.index].ids, before.path, ids) if share and pack.rows else []
        if pack.rows and len(pack.ids) + len(ids) - len(path) > batch_tokens:
            yield pack
            pack, path = Pack(), []
        before = pack.add(i, ids, path)
    if pack.rows:
        yield pack


def _shared_path(known: Sequence[int], path: list[int], ids: Sequence[int]) -> list[int]:
    """Places of the tokens with which a row begins as the one before it; none if they are too few."""
    count = 0
    for place_id, index in zip(known[: len(path)], ids, strict=False):
        if place_id != index:
            break
        count += 1
    return path[:count] if count > SHARED * len(ids) else []
