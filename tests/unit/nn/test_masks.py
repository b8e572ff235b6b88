"""Masks against the obvious double loop over queries and keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gptrio.nn.masks import AttentionMask

CPU = torch.device("cpu")


def obvious(mask: AttentionMask, row: int, query: int, key: int) -> str:
    """What query slot `query` may do with key slot `key`: "attend", "never" or "padding"."""
    at = mask.query_start + query if mask.positions is None else int(mask.positions[query])
    to = mask.key_offset + key
    if mask.causal and to > at:
        return "never"
    if mask.window is not None and to <= at - mask.window:
        return "never"
    if mask.segments is not None and mask.segments[row, query] != mask.segments[row, key]:
        return "never"
    if mask.attention_mask is not None and (to >= mask.attention_mask.shape[1] or not mask.attention_mask[row, to]):
        return "padding"
    if mask.custom is not None and not mask.custom[row, 0, query, key]:
        return "padding"
    return "attend"


def assert_obvious(mask: AttentionMask, rows: int, dtype: torch.dtype = torch.float32) -> None:
    added = mask.additive(dtype).expand(rows, 1, mask.query_length, mask.key_length)
    assert added.dtype == dtype
    for row in range(rows):
        for query in range(mask.query_length):
            for key in range(mask.key_length):
                value, what = float(added[row, 0, query, key]), obvious(mask, row, query, key)
                assert {"attend": value == 0, "never": value == -torch.inf, "padding": -torch.inf < value < -1e4}[what]
    if mask.is_unmasked:
        assert (added == 0).all()
    if mask.is_square_causal:
        assert torch.equal(added[0, 0] == 0, torch.ones(mask.query_length, mask.key_length).tril().bool())


@st.composite
def masks(draw: st.DrawFn) -> tuple[AttentionMask, int]:
    """Any mask of a few rows, and the number of rows."""
    rows, new, past = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(0, 6))
    offset = draw(st.integers(0, past))
    options: dict[str, Any] = {
        "query_start": past,
        "key_offset": offset,
        "causal": draw(st.booleans()),
        "window": draw(st.none() | st.integers(1, 8)),
    }
    bits = st.lists(st.booleans(), min_size=rows * (past + new), max_size=rows * (past + new))
    kind = draw(st.sampled_from(["plain", "padding", "custom", "segments"]))
    keys = past + new - offset
    if kind == "padding":
        options["attention_mask"] = torch.tensor(draw(bits)).view(rows, past + new)
    elif kind == "custom":
        options["custom"] = torch.tensor(draw(bits)).view(rows, 1, 1, past + new)[..., offset:].expand(-1, -1, new, -1)
    elif kind == "segments":
        options |= {"query_start": 0, "key_offset": 0}
        options["segments"] = torch.randint(0, 2, (rows, new)).cumsum(1)
        keys = new
    return AttentionMask(new, keys, CPU, **options), rows


@given(masks(), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_any_mask_is_the_obvious_one(mask_and_rows: tuple[AttentionMask, int], dtype: torch.dtype) -> None:
    mask, rows = mask_and_rows
    assert_obvious(mask, rows, dtype)


@given(masks(), st.integers(1, 8))
def test_a_layer_with_a_window_sees_the_last_keys_only(mask_and_rows: tuple[AttentionMask, int], window: int) -> None:
    mask, rows = mask_and_rows
    if mask.segments is not None or mask.window is not None:
        return
    local = mask.for_layer(mask.key_length, mask.key_offset, window)
    assert local.key_offset + local.key_length == mask.key_offset + mask.key_length
    assert local.key_length <= window - 1 + mask.query_length
    assert_obvious(local, rows)


def test_positions_known_as_a_tensor_only() -> None:
    positions = torch.tensor([3, 4])
    mask = AttentionMask(2, 8, CPU, positions=positions, attention_mask=torch.tensor([[False, True, True, True, True]]))
    assert_obvious(mask, 1)
    assert not mask.is_unmasked
    assert not mask.is_square_causal


def test_forms_are_computed_once() -> None:
    mask = AttentionMask(3, 3, CPU)
    assert mask.additive(torch.float32) is mask.additive(torch.float32)
    assert mask.additive(torch.float16) is not mask.additive(torch.float32)


@pytest.mark.parametrize(
    ("padding", "only_padding"),
    [([1, 1, 1], False), ([1, 0, 0], False), ([0, 1, 1], True), ([0, 0, 0], True)],
)
def test_queries_that_see_padding_alone(padding: list[int], only_padding: bool) -> None:
    mask = AttentionMask(3, 3, CPU, attention_mask=torch.tensor([[1, 1, 1], padding]).bool())
    assert mask.has_fully_padded_rows() == only_padding
    added = torch.zeros(2, 1, 3, 3).masked_fill(~torch.tensor([[1, 1, 1], padding]).bool()[:, None, None], -10_000.0)
    assert AttentionMask(3, 3, CPU, custom=added).has_fully_padded_rows() == only_padding


def test_plain_masks_leave_no_query_without_a_key() -> None:
    assert not AttentionMask(3, 3, CPU).has_fully_padded_rows()
    assert not AttentionMask(3, 5, CPU, causal=False).has_fully_padded_rows()


def as_weights(added: Tensor) -> Tensor:
    return torch.softmax(added.float(), -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_query_that_sees_padding_alone_attends_evenly(dtype: torch.dtype) -> None:
    mask = AttentionMask(3, 3, CPU, attention_mask=torch.tensor([[False, False, True]]))
    weights = as_weights(mask.additive(dtype))[0, 0]
    expected = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]])
    assert torch.equal(weights, expected)


def test_a_query_that_sees_padding_alone_attends_to_all_unless_such_rows_are_masked() -> None:
    mask = AttentionMask(3, 3, CPU, mask_fully_padded_rows=False, attention_mask=torch.tensor([[False, True, True]]))
    weights = as_weights(mask.additive(torch.float32))[0, 0]
    assert torch.equal(weights[1:], torch.tensor([[0, 1, 0], [0, 0.5, 0.5]]))
    torch.testing.assert_close(weights[0], torch.full((3,), 1 / 3))
