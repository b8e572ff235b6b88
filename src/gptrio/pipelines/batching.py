"""Batches of a pipeline: which rows run together, how they become one input, and how outputs become rows again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gptrio.errors import InputError
from gptrio.outputs import ModelOutput

Row = Mapping[str, Any]  # what `preprocess` returns: tensors (1, ...) and other values

_READING = 34  # tokens that a processor computes in the time of reading the weights once, in float32
_PAD_WITH_ONE = ("p_mask", "special_tokens_mask")


def in_order(count: int, batch_size: int) -> list[list[int]]:
    """Indices of `count` rows in batches of neighbours."""
    return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]


def by_length(
    lengths: Sequence[int], max_rows: int, max_tokens: int, equal: bool = False, runs: int = 1
) -> list[list[int]]:
    """Indices of rows in batches of similar length, the longest first, that take the least time together.

    A batch takes the time of its tokens, padding included, and for each run of the model that of reading the weights.

    Args:
        lengths: tokens of each row.
        max_rows: most rows of a batch.
        max_tokens: most tokens of a batch, padding included, if it has several rows.
        equal: put only rows of equal length together.
        runs: how often the model runs for a batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    best = [(0, 0)]  # for the first rows of the order: the time of their batches, and where the last batch starts
    for end in range(1, len(order) + 1):
        found = (best[end - 1][0] + lengths[order[end - 1]] + runs * _READING, end - 1)
        for start in range(end - 2, max(end - max_rows, 0) - 1, -1):
            longest = lengths[order[start]]
            tokens = (end - start) * longest
            if tokens > max_tokens or (equal and longest != lengths[order[end - 1]]):
                break
            found = min(found, (best[start][0] + tokens + runs * _READING, start))
        best.append(found)
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(order[best[end][1] : end])
        end = best[end][1]
    return batches[::-1]


def of_equal_length(batch: Iterable[int], lengths: Sequence[int]) -> list[list[int]]:
    """A batch of indices as one for each length of its rows."""
    parts: dict[int, list[int]] = {}
    for index in batch:
        parts.setdefault(lengths[index], []).append(index)
    return list(parts.values())


def length_of(row: Row) -> int:
    """Tokens of a row; 0 if it has no `input_ids`."""
    ids = row.get("input_ids")
    return int(ids.shape[-1]) if isinstance(ids, Tensor) else 0


def collate(rows: Sequence[Row], pad_token_id: int, padding_side: str) -> dict[str, Any]:
    """One input of all rows: tensors are padded along their second axis and joined, other values become lists.

    Args:
        rows: with the same names.
        pad_token_id: pads `input_ids`; masks of special tokens are padded with 1, everything else with 0.
        padding_side: "left" or "right".

    Raises:
        InputError: the rows have different names.
    """
    names = list(rows[0])
    for row in rows:
        if set(row) != set(names):
            raise InputError(f"rows of one batch must have the same entries, not {sorted(names)} and {sorted(row)}")
    pads = {"input_ids": pad_token_id, **dict.fromkeys(_PAD_WITH_ONE, 1)}
    return {name: _joined([row[name] for row in rows], pads.get(name, 0), padding_side) for name in names}


def _joined(values: list[Any], pad: int, side: str) -> Any:
    if not isinstance(values[0], Tensor):
        return values
    if values[0].dim() > 1:
        longest = max(value.shape[1] for value in values)
        values = [_padded(value, longest, pad, side) for value in values]
    return torch.cat(values)


def _padded(value: Tensor, length: int, pad: int, side: str) -> Tensor:
    """A tensor (1, T, ...) as (1, length, ...)."""
    missing = length - value.shape[1]
    if missing == 0:
        return value
    padding = value.new_full((value.shape[0], missing, *value.shape[2:]), pad)
    return torch.cat([padding, value] if side == "left" else [value, padding], dim=1)


def row_of(outputs: Any, index: int) -> Any:
    """Output of one row of a batch, as the model would return it for the row alone."""
    if isinstance(outputs, Tensor):
        return outputs[index : index + 1]
    if isinstance(outputs, tuple):
        return tuple(row_of(item, index) for item in outputs)
    if isinstance(outputs, ModelOutput):
        fields = {name: row_of(value, index) for name, value in outputs.items() if name != "past_key_values"}
        return type(outputs)(**fields)
    if isinstance(outputs, Mapping):
        return {name: row_of(value, index) for name, value in outputs.items() if name != "past_key_values"}
    return None if outputs is None else outputs[index]


def without_padding(output: Any, length: int, names: Iterable[str], padded_length: int, padding_side: str) -> Any:
    """Output of one row with the positions of its padding removed.

    Args:
        output: of one row; anything but a mapping is returned as it is.
        length: of the row.
        names: entries (1, padded length, ...) to cut; those that are missing are skipped.
        padded_length: of the batch.
        padding_side: "left" or "right".
    """
    if length == padded_length or not isinstance(output, MutableMapping):
        return output
    kept = slice(padded_length - length, None) if padding_side == "left" else slice(length)
    for name in names:
        if name in output and isinstance(output[name], Tensor):
            output[name] = output[name][:, kept]
    return output
