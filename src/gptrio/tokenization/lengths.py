"""Padding of tokenized texts, and truncation of ids: plain functions over lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptrio.tokenization.options import TruncationStrategy

Ids = list[int]


def padded_length(length: int, multiple: int | None) -> int:
    """Round a length up to a multiple."""
    return length if not multiple else -(-length // multiple) * multiple


def pad_example(example: dict[str, Any], length: int, side: str, fill: Mapping[str, int]) -> dict[str, Any]:
    """Pad the entries of one text that are named in `fill` (to its values) up to a length; longer ones stay.

    Args:
        example: lists by name.
        length: number of tokens to pad to.
        side: "left" or "right".
        fill: padding value by entry name.
    """
    padded = dict(example)
    for name, value in fill.items():
        if name in example:
            extra = [value] * (length - len(example[name]))
            padded[name] = extra + example[name] if side == "left" else example[name] + extra
    return padded


def truncate(
    ids: Ids, pair_ids: Ids | None, remove: int, strategy: str, stride: int, side: str
) -> tuple[Ids, Ids | None, Ids]:
    """Cut `remove` tokens from one or two texts.

    Args:
        ids, pair_ids: tokens of the first and of the second text.
        remove: number of tokens too many.
        strategy: a `TruncationStrategy`; "longest_first" evens out a pair and returns no overflow for it.
        stride: number of remaining tokens that the overflow repeats.
        side: "left" or "right", where to cut.

    Returns:
        First text, second text, overflow. All stay as they are when the text to cut is too short.
    """
    if remove <= 0:
        return ids, pair_ids, []
    if strategy == TruncationStrategy.ONLY_SECOND and pair_ids is not None:
        pair_ids, overflow = _cut_with_overflow(pair_ids, remove, stride, side)
        return ids, pair_ids, overflow
    if strategy == TruncationStrategy.ONLY_FIRST or (strategy == TruncationStrategy.LONGEST_FIRST and pair_ids is None):
        ids, overflow = _cut_with_overflow(ids, remove, stride, side)
        return ids, pair_ids, overflow
    if strategy == TruncationStrategy.LONGEST_FIRST and pair_ids is not None:
        from_longer = min(abs(len(ids) - len(pair_ids)), remove)
        rest = remove - from_longer
        from_first, from_second = rest // 2, rest - rest // 2
        if len(ids) > len(pair_ids):
            from_first += from_longer
        else:
            from_second += from_longer
        return _cut(ids, from_first, side), _cut(pair_ids, from_second, side), []
    return ids, pair_ids, []


def _cut(ids: Ids, count: int, side: str) -> Ids:
    return ids[count:] if side == "left" else ids[: max(len(ids) - count, 0)]


def _cut_with_overflow(ids: Ids, remove: int, stride: int, side: str) -> tuple[Ids, Ids]:
    if len(ids) <= remove:
        return ids, []
    window = min(len(ids), stride + remove)
    return _cut(ids, remove, side), ids[:window] if side == "left" else ids[-window:]
