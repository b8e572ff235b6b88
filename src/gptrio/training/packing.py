"""Packs texts of different lengths into rows of one length, so that a batch has hardly any padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gptrio.errors import InputError, OptionError, nearest
from gptrio.tokenization.tensors import to_plain
from gptrio.training.collators import IGNORE

STRATEGIES = ("best_fit", "split")


class _Piece(NamedTuple):
    """A text, or a part of one that is longer than a row."""

    ids: list[int]
    labels: list[int]


def pack(
    dataset: Iterable[Any], length: int, strategy: str = "best_fit", pad_token_id: int = 0
) -> list[dict[str, list[int]]]:
    """Lay texts end to end in rows of `length` tokens; the same texts always give the same rows.

    `default_data_collator` makes batches of the rows. The model keeps the texts of a row apart by their `segment_ids`
    (or by `packed=True`, if it gets `position_ids` alone): each has the logits and the loss that it has alone.

    Args:
        dataset: texts as mappings with `input_ids`, and perhaps `labels` (-100 does not count), or as lists of ids.
        length: tokens of a row.
        strategy: "best_fit" keeps texts whole, longest first, each in the fullest row that has room for it, and cuts
            only those that are longer than a row; "split" keeps the order, fills every row, and cuts a text at its end.
        pad_token_id: fills the rest of a row, whose labels do not count.

    Returns:
        Rows of `input_ids`, `labels` (-100 for the first token of each text, which nothing predicts), `position_ids`
        and `segment_ids`, each (length,).

    Raises:
        OptionError: an unknown strategy, or a length below 2.
        InputError: a text has no `input_ids`, or labels of another length.
    """
    if length < 2:
        raise OptionError(f"length is {length}; a row needs at least 2 tokens, of which one predicts the other")
    if strategy not in STRATEGIES:
        raise OptionError(
            f"strategy is {strategy!r}; expected {' or '.join(STRATEGIES)} {nearest(strategy, STRATEGIES)}"
        )
    texts = (_text(i, example) for i, example in enumerate(dataset))
    if strategy == "split":
        rows = _split(texts, length)
    else:
        pieces = [piece for text in texts for piece in _cut(text, length, length)]
        rows = [[pieces[i] for i in row] for row in best_fit([len(piece.ids) for piece in pieces], length)]
    return [_row(row, length, pad_token_id) for row in rows]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Distribute items over bins by best-fit decreasing (Johnson, 1974), in O(n log n).

    Args:
        lengths: of the items, each at most `capacity`.
        capacity: of a bin.

    Returns:
        The indices of each bin's items, ascending; bins in the order of their first items.
    """
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # bins by the room that is left in them
    rooms: list[int] = []  # the keys, ascending
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(rooms, lengths[item])
        if place == len(rooms):
            number, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[place]
            number = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        bins[number].append(item)
        room -= lengths[item]
        if room not in with_room:
            insort(rooms, room)
        with_room.setdefault(room, []).append(number)
    return sorted(map(sorted, bins))


def _text(number: int, example: Any) -> _Piece:
    """Ids and labels of an example."""
    columns = example if isinstance(example, Mapping) else {"input_ids": example}
    if columns.get("input_ids") is None:
        raise InputError(f"example {number} has no input_ids; it has {', '.join(map(str, columns)) or 'nothing'}")
    ids = to_plain(columns["input_ids"])
    labels = ids if columns.get("labels") is None else to_plain(columns["labels"])
    if len(labels) != len(ids):
        raise InputError(f"example {number} has {len(ids)} input_ids, but {len(labels)} labels; expected one for each")
    return _Piece(ids, labels)


def _cut(text: _Piece, first: int, length: int) -> list[_Piece]:
    """Parts of a text: at most `first` tokens, then `length` each; none of an empty text."""
    count = len(text.ids)
    if not count:
        return []
    starts = [0, *range(first, count, length)]
    ends = [*starts[1:], count]
    return [_Piece(text.ids[a:b], text.labels[a:b]) for a, b in zip(starts, ends, strict=True)]


def _split(texts: Iterable[_Piece], length: int) -> list[list[_Piece]]:
    """Rows of texts in their order, each cut where its row ends."""
    rows: list[list[_Piece]] = []
    room = 0
    for text in texts:
        for piece in _cut(text, room or length, length):
            if not room:
                rows.append([])
                room = length
            rows[-1].append(piece)
            room -= len(piece.ids)
    return rows


def _row(pieces: list[_Piece], length: int, pad_token_id: int) -> dict[str, list[int]]:
    """The columns of a row; padding is a text of its own, so that no other sees it."""
    padding = length - sum(len(piece.ids) for piece in pieces)
    if padding:
        pieces = [*pieces, _Piece([pad_token_id] * padding, [IGNORE] * padding)]
    sizes = [len(piece.ids) for piece in pieces]
    return {
        "input_ids": [token for piece in pieces for token in piece.ids],
        "labels": [label for piece in pieces for label in (IGNORE, *piece.labels[1:])],
        "position_ids": [position for size in sizes for position in range(size)],
        "segment_ids": [number for number, size in enumerate(sizes) for _ in range(size)],
    }
