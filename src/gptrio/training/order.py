"""Orders of the rows of a data set: functions of seed and epoch, so that a place in them is two numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, Sampler, SequentialSampler

from gptrio.errors import InputError
from gptrio.training import ranks


def epoch_order(length: int, seed: int, epoch: int) -> list[int]:
    """A random order of `length` rows; that of Transformers 4.56 with the same seed."""
    order: list[int] = torch.randperm(length, generator=_generator(seed, epoch)).tolist()
    return order


def length_grouped_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[int]:
    """A random order in which rows of similar length are neighbours, and the longest row comes first.

    Args:
        lengths: (N,) tokens of each row.
        batch_size: rows of one update; at most 50 times as many random rows are sorted by length.
        seed: of the run.
        epoch: of the run.
    """
    return get_length_grouped_indices(lengths, batch_size, generator=_generator(seed, epoch))


def get_length_grouped_indices(
    lengths: Sequence[int],
    batch_size: int,
    mega_batch_mult: int | None = None,
    generator: torch.Generator | None = None,
) -> list[int]:
    """The order of `length_grouped_order`, drawn from a generator.

    Args:
        lengths: (N,) tokens of each row.
        batch_size: rows of one update.
        mega_batch_mult: how many times as many random rows are sorted by length; by default at most 50.
        generator: torch's global one by default.
    """
    order: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
    size = batch_size * max(1, mega_batch_mult or min(len(lengths) // (batch_size * 4), 50))
    chunks = [
        sorted(order[start : start + size], key=lambda i: lengths[i], reverse=True)
        for start in range(0, len(order), size)
    ]
    longest = max(range(len(chunks)), key=lambda i: lengths[chunks[i][0]], default=0)
    if chunks:  # what does not fit into memory shall fail in the first update
        chunks[0][0], chunks[longest][0] = chunks[longest][0], chunks[0][0]
    return [i for chunk in chunks for i in chunk]


def lengths_of(dataset: Any, column: str, model_input_name: str = "input_ids") -> list[int]:
    """Tokens of each row: of a column of lengths if the data set has one, else counted.

    Raises:
        InputError: rows have no such input.
    """
    if column in (getattr(dataset, "column_names", None) or ()):
        return [int(length) for length in dataset[column]]
    first = dataset[0]
    if not hasattr(first, "keys") or model_input_name not in first:
        raise InputError(
            f"group_by_length needs rows with {model_input_name!r}, but the first is "
            f"{f'a mapping with {list(first)}' if hasattr(first, 'keys') else type(first).__name__}; name a column of "
            "lengths by length_column_name, or leave group_by_length off"
        )
    return [len(dataset[i][model_input_name]) for i in range(len(dataset))]


class LengthGroupedSampler(Sampler[int]):
    """Reads rows of similar length together, in an order that is drawn anew each time; for samplers of one's own.

    Args:
        batch_size: rows of one update.
        dataset: whose rows are counted, unless `lengths` are given.
        lengths: (N,) tokens of each row.
        model_input_name: what is counted; "input_ids" by default.
        generator: torch's global one by default.

    Raises:
        InputError: neither a data set nor lengths, or rows without such an input.
    """

    def __init__(
        self,
        batch_size: int,
        dataset: Any = None,
        lengths: Sequence[int] | None = None,
        model_input_name: str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if dataset is None and lengths is None:
            raise InputError("LengthGroupedSampler needs rows to read; pass dataset or lengths")
        self.batch_size, self.generator = batch_size, generator
        self.lengths = list(lengths_of(dataset, "", model_input_name or "input_ids") if lengths is None else lengths)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """All rows."""
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=self.generator))


class EpochSampler(Sampler[int]):
    """Reads rows in an order that depends on a seed and the epoch, from a place on.

    Args:
        length: number of rows.
        order: the order that a seed and an epoch give.
        seed: of the run.
    """

    def __init__(self, length: int, order: Callable[[int, int], list[int]], seed: int) -> None:
        self.length, self.order, self.seed = length, order, seed
        self.epoch = self.start = 0

    def __len__(self) -> int:
        """Rows of a whole epoch."""
        return self.length

    def __iter__(self) -> Iterator[int]:
        """The rows of the epoch that are left."""
        return iter(self.order(self.seed, self.epoch)[self.start :])

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        self.epoch, self.start = epoch, 0


def rank_rows(order: Sequence[int], batch_size: int, drop_last: bool = False) -> list[int]:
    """This rank's part of an order, of which batches are dealt to the ranks in turn."""
    every = batch_size * ranks.world_size()
    end = len(order) - len(order) % every if drop_last else len(order)
    starts = range(ranks.rank() * batch_size, end, every)
    return [row for start in starts for row in order[start : min(start + batch_size, end)]]


class RankSampler(Sampler[int]):
    """The rows of this rank: batches are dealt to the ranks in turn, so that their order does not depend on the ranks.

    No row is read twice: an incomplete last batch stays so, and some ranks may have one batch less than others.

    Args:
        rows: the order of all rows; where it is drawn, that of rank 0 holds.
        batch_size: rows of a batch of one rank.
        drop_last: leave out the last batches that do not suffice for a whole one on each rank.
    """

    def __init__(self, rows: Sampler[int], batch_size: int, drop_last: bool = False) -> None:
        self.rows, self.batch_size, self.drop_last = rows, batch_size, drop_last
        self.world_size = ranks.world_size()

    def __len__(self) -> int:
        """Rows of this rank."""
        return len(rank_rows(range(len(self.rows)), self.batch_size, self.drop_last))  # type: ignore[arg-type]  # which has a length

    def __iter__(self) -> Iterator[int]:
        """The rows of this rank."""
        order = list(self.rows)
        is_drawn = not isinstance(self.rows, (EpochSampler, SequentialSampler))
        return iter(rank_rows(ranks.from_first(order) if is_drawn else order, self.batch_size, self.drop_last))

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)


class RankStream(IterableDataset[Any]):
    """The rows of this rank from data that each rank reads as a whole, dealt as by `RankSampler`.

    Args:
        dataset: can be read in one order alone, the same on all ranks.
        batch_size: rows of a batch of one rank.
    """

    def __init__(self, dataset: Any, batch_size: int) -> None:
        self.dataset, self.batch_size = dataset, batch_size
        self.rank, self.world_size = ranks.rank(), ranks.world_size()

    def __iter__(self) -> Iterator[Any]:
        """The rows of this rank; the numbers are kept, as workers that load data know of no ranks."""
        for number, row in enumerate(self.dataset):
            if number // self.batch_size % self.world_size == self.rank:
                yield row

    def __len__(self) -> int:
        """Rows of this rank, where the data has a length."""
        return len(rank_rows(range(len(self.dataset)), self.batch_size))

    def set_epoch(self, epoch: int) -> None:
        """Tell the data which epoch begins."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


def has_length(thing: Any) -> bool:
    """Whether `len(thing)` works."""
    try:
        return len(thing) is not None
    except (TypeError, AttributeError, NotImplementedError):
        return False


def is_streamed(dataset: Any) -> bool:
    """Whether a data set can only be read from its beginning."""
    return isinstance(dataset, IterableDataset)


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed + epoch)
