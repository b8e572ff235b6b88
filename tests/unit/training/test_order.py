"""The order of the rows: the reference's, and the same from any place on."""

from __future__ import annotations

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader
from transformers import trainer_pt_utils
from transformers.trainer_pt_utils import get_length_grouped_indices

from gptrio import InputError
from gptrio.training.loaders import batches_from, set_epoch
from gptrio.training.order import (
    EpochSampler,
    LengthGroupedSampler,
    epoch_order,
    has_length,
    length_grouped_order,
    lengths_of,
)


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("seed", [0, 42])
def test_the_order_of_an_epoch_is_the_reference_s(seed, epoch):
    reference = SeedableRandomSampler(range(23), data_seed=seed)
    reference.set_epoch(epoch)
    assert epoch_order(23, seed, epoch) == list(reference)


@pytest.mark.parametrize(("rows", "batch"), [(1, 4), (7, 2), (203, 3)])
def test_rows_are_grouped_by_length_as_in_the_reference(rows, batch):
    lengths = torch.randint(1, 50, (rows,)).tolist()
    reference = get_length_grouped_indices(lengths, batch, generator=torch.Generator().manual_seed(5 + 2))
    assert length_grouped_order(lengths, batch, seed=5, epoch=2) == reference


def test_nothing_has_an_order_too():
    assert length_grouped_order([], 4, seed=0, epoch=0) == []
    assert epoch_order(0, 0, 0) == []


def loader(shuffled_by_us: bool = True) -> DataLoader:
    rows = list(range(11))
    sampler = EpochSampler(11, lambda seed, epoch: epoch_order(11, seed, epoch), seed=7)
    return DataLoader(rows, batch_size=3, sampler=sampler) if shuffled_by_us else DataLoader(rows, batch_size=3)


@pytest.mark.parametrize("shuffled_by_us", [True, False])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_an_epoch_goes_on_from_any_batch(shuffled_by_us, index):
    whole, part = loader(shuffled_by_us), loader(shuffled_by_us)
    for each in (whole, part):
        set_epoch(each, 1)
    expected = [batch.tolist() for batch in whole]
    assert [batch.tolist() for batch in batches_from(part, index)] == expected[index:]
    assert len(part) == 4
    set_epoch(part, 1)
    assert [batch.tolist() for batch in part] == expected


def test_a_place_is_reached_without_reading_what_lies_before_it():
    read = []

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            read.append(index)
            return index

    sampler = EpochSampler(8, lambda seed, epoch: epoch_order(8, seed, epoch), seed=0)
    list(batches_from(DataLoader(Rows(), batch_size=2, sampler=sampler), 3))
    assert read == epoch_order(8, 0, 0)[6:]


def test_every_part_that_has_epochs_hears_of_them_once():
    heard = []

    class Rows(list):
        def set_epoch(self, epoch):
            heard.append(epoch)

    set_epoch(DataLoader(Rows([1, 2])), 4)
    assert heard == [4]


def test_lengths_come_from_a_column_or_are_counted():
    class Table(list):
        column_names = ("input_ids", "length")

        def __getitem__(self, key):
            return [7, 9] if key == "length" else super().__getitem__(key)

    rows = [{"input_ids": [1, 2, 3]}, {"input_ids": [1]}]
    assert lengths_of(Table(rows), "length") == [7, 9]
    assert lengths_of(rows, "length") == [3, 1]
    with pytest.raises(InputError, match=r"group_by_length needs rows with 'input_ids'.*\['text'\]"):
        lengths_of([{"text": "a"}], "length")


def test_a_length_is_one_that_can_be_asked_for():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([1])

    assert has_length([1])
    assert not has_length(Stream())
    assert not has_length(DataLoader(Stream()))


def test_a_sampler_of_ones_own_groups_lengths_as_the_references():
    lengths = torch.randint(1, 50, (70,)).tolist()
    rows = [{"ids": list(range(length))} for length in lengths]
    drawn = []
    for sampler in (LengthGroupedSampler, trainer_pt_utils.LengthGroupedSampler):
        by_length = sampler(4, lengths=lengths, generator=torch.Generator().manual_seed(3))
        by_row = sampler(4, rows, model_input_name="ids", generator=torch.Generator().manual_seed(4))
        drawn.append([list(by_length), list(by_length), list(by_row), len(by_row)])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]  # drawn anew
    with pytest.raises(InputError, match="pass dataset or lengths"):
        LengthGroupedSampler(4)
