"""Batches of pipelines: rows of similar length together, padding added and removed."""

from __future__ import annotations

from itertools import accumulate, combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptrio.errors import InputError
from gptrio.outputs import TokenClassifierOutput
from gptrio.pipelines.batching import by_length, collate, in_order, of_equal_length, row_of, without_padding


@given(st.lists(st.integers(0, 40)), st.integers(1, 8), st.integers(1, 100), st.booleans())
def test_every_row_is_in_one_batch_within_the_limits(lengths: list[int], rows: int, tokens: int, equal: bool) -> None:
    batches = by_length(lengths, rows, tokens, equal)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * longest <= tokens
        assert not equal or {lengths[i] for i in batch} == {longest}


def test_neighbours_stay_together_in_order() -> None:
    assert in_order(5, 2) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_added_and_removed(side: str) -> None:
    rows = [
        {"input_ids": torch.tensor([[5, 6]]), "special_tokens_mask": torch.tensor([[0, 0]]), "text": "a"},
        {"input_ids": torch.tensor([[7, 8, 9]]), "special_tokens_mask": torch.tensor([[0, 1, 0]]), "text": "b"},
    ]
    batch = collate(rows, 4, side)
    padding = [[4, 5, 6], [1, 0, 0]] if side == "left" else [[5, 6, 4], [0, 0, 1]]
    assert [batch["input_ids"][0].tolist(), batch["special_tokens_mask"][0].tolist()] == padding
    assert batch["text"] == ["a", "b"]
    first = without_padding(row_of(batch, 0), 2, ["input_ids", "special_tokens_mask"], 3, side)
    assert first["text"] == "a"
    assert torch.equal(first["input_ids"], rows[0]["input_ids"])
    assert torch.equal(first["special_tokens_mask"], rows[0]["special_tokens_mask"])


def test_rows_with_different_entries_are_refused() -> None:
    with pytest.raises(InputError, match="same entries"):
        collate([{"input_ids": torch.ones(1, 2)}, {"ids": torch.ones(1, 2)}], 0, "left")


def test_a_row_of_a_result_is_what_one_row_would_give() -> None:
    states = (torch.arange(6.0).reshape(2, 3), torch.zeros(2, 3))
    row = row_of(TokenClassifierOutput(logits=torch.arange(4.0).reshape(2, 2), hidden_states=states), 1)
    assert torch.equal(row.logits, torch.tensor([[2.0, 3.0]]))
    assert torch.equal(row.hidden_states[0], torch.tensor([[3.0, 4.0, 5.0]]))


@pytest.mark.parametrize("runs", [1, 4])
@pytest.mark.parametrize("lengths", [[90, 80, 9, 8, 7, 1], [40] * 3 + [2] * 3, [300, 1, 1], [5, 4, 3]], ids=str)
def test_batches_take_the_least_time_of_all(lengths: list[int], runs: int) -> None:
    def time_of(cuts: tuple[int, ...]) -> int:
        ends = [0, *cuts, len(lengths)]
        return sum((end - start) * lengths[start] + 34 * runs for start, end in pairwise(ends))

    several = (cuts for count in range(len(lengths)) for cuts in combinations(range(1, len(lengths)), count))
    found = by_length(lengths, 9, 10_000, runs=runs)
    assert [index for batch in found for index in batch] == list(range(len(lengths)))
    assert time_of(tuple(accumulate(len(batch) for batch in found[:-1]))) == min(map(time_of, several))


def test_rows_of_equal_length_stay_together_in_order() -> None:
    assert of_equal_length([3, 1, 2, 0], [5, 4, 5, 5]) == [[3, 2, 0], [1]]
