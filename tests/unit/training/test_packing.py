"""Rows of packed texts: what they hold, how full they are, and that a model reads each text as if it were alone."""

from __future__ import annotations

import random
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gptrio
from gptrio import default_data_collator, pack
from gptrio.testing import assert_close, tiny_config
from gptrio.training.packing import best_fit

LENGTH = 16
STRATEGIES = ("best_fit", "split")


def texts_of(row: dict[str, list[int]]) -> list[list[int]]:
    """The parts of a row, padding (of zeros) left out."""
    parts: dict[int, list[int]] = {}
    for token, number in zip(row["input_ids"], row["segment_ids"], strict=True):
        parts.setdefault(number, []).append(token)
    return [part for part in parts.values() if any(part)]


def some_texts(count: int, longest: int) -> list[list[int]]:
    rng = random.Random(count)
    return [[rng.randint(1, 250) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(lengths=st.lists(st.integers(0, 40), max_size=30))
def test_every_token_is_in_one_place_with_its_label_and_position(strategy, lengths):
    texts = [[1 + i] * length for i, length in enumerate(lengths)]
    rows = pack([{"input_ids": text} for text in texts], LENGTH, strategy)
    assert rows == pack(texts, LENGTH, strategy)
    assert sum(map(sum, (row["input_ids"] for row in rows))) == sum(map(sum, texts))
    for row in rows:
        assert {len(column) for column in row.values()} == {LENGTH}
        before, last = None, 0
        for token, label, position, number in zip(*row.values(), strict=True):
            is_first = number != before
            assert position == (0 if is_first else last + 1)
            assert label == (-100 if is_first or token == 0 else token)
            before, last = number, position


def test_best_fit_keeps_texts_whole_and_cuts_only_those_longer_than_a_row():
    texts = some_texts(60, LENGTH)
    found = [text for row in pack(texts, LENGTH) for text in texts_of(row)]
    assert sorted(found) == sorted(texts)
    long = list(range(1, 40))
    parts = [text for row in pack([long, [7] * 5], LENGTH) for text in texts_of(row)]
    assert sorted(parts) == sorted([long[:16], long[16:32], long[32:], [7] * 5])


def test_split_keeps_the_order_and_fills_every_row():
    texts = some_texts(40, 30)
    rows = pack(texts, LENGTH, "split")
    tokens = [token for row in rows for token in row["input_ids"]]
    everything = [token for text in texts for token in text]
    assert tokens[: len(everything)] == everything and not any(tokens[len(everything) :])
    assert len(rows) == -(-len(everything) // LENGTH)


def test_masked_prompts_stay_masked():
    (row,) = pack([{"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}, {"input_ids": [4, 5]}], 6)
    assert row["input_ids"] == [1, 2, 3, 4, 5, 0]
    assert row["labels"] == [-100, -100, 3, -100, 5, -100]
    assert row["position_ids"] == [0, 1, 2, 0, 1, 0]
    assert row["segment_ids"] == [0, 0, 0, 1, 1, 2]


def slow_best_fit(lengths, capacity):
    bins = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rooms = [(capacity - sum(lengths[i] for i in row), row) for row in bins]
        fitting = [(room, row) for room, row in rooms if room >= lengths[item]]
        if fitting:
            min(fitting, key=lambda pair: pair[0])[1].append(item)
        else:
            bins.append([item])
    return bins


@given(st.lists(st.integers(1, 20), max_size=40))
def test_best_fit_needs_as_many_rows_as_the_definition(lengths):
    bins = best_fit(lengths, 20)
    assert sorted(i for row in bins for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 20 for row in bins)
    assert len(bins) == len(slow_best_fit(lengths, 20))


def test_many_short_texts_leave_hardly_any_padding_and_take_no_time():
    rng = random.Random(0)
    lengths = [min(int(rng.lognormvariate(3, 0.8)) + 1, 512) for _ in range(50_000)]
    start = time.process_time()
    bins = best_fit(lengths, 512)
    assert time.process_time() - start < 3
    assert sum(lengths) / (512 * len(bins)) > 0.995


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neo", "gpt_neox"])
def test_the_loss_of_rows_is_that_of_the_texts(model_type):
    model = gptrio.AutoModelForCausalLM.from_config(tiny_config(model_type)).eval()
    texts = some_texts(12, 24)
    batch = default_data_collator(pack(texts, 24))
    count = sum(len(text) - 1 for text in texts)
    ids = [torch.tensor([text]) for text in texts]
    alone = sum(model(input_ids=each, labels=each, num_items_in_batch=count).loss for each in ids)
    assert_close(model(**batch).loss, alone, 1e-6)
    without = {name: column for name, column in batch.items() if name != "segment_ids"}
    assert_close(model(**without, packed=True, logits=False).loss, alone, 1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1, 2]], 1), gptrio.OptionError, "length is 1"),
        (([[1, 2]], 8, "best-fit"), gptrio.OptionError, "did you mean 'best_fit'"),
        (([{"text": "a"}], 8), gptrio.InputError, "example 0 has no input_ids; it has text"),
        (
            ([[1], {"input_ids": [1, 2], "labels": [1]}], 8),
            gptrio.InputError,
            "example 1 has 2 input_ids, but 1 labels",
        ),
    ],
)
def test_what_cannot_be_packed_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        pack(*arguments)
