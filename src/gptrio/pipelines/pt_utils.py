"""Datasets that select entries of another dataset, or apply a function to its items, as input of pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from gptrio.pipelines.batching import row_of


class KeyDataset(Dataset[Any]):
    """The entry `key` of every item of a dataset.

    Args:
        dataset: of dictionaries, with a length.
        key: which entry.
    """

    def __init__(self, dataset: Any, key: str) -> None:
        self.dataset = dataset
        self.key = key

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        return self.dataset[i][self.key]


class KeyPairDataset(Dataset[Any]):
    """Two entries of every item of a dataset, as the pair `{"text": ..., "text_pair": ...}`.

    Args:
        dataset: of dictionaries, with a length.
        key1, key2: which entries.
    """

    def __init__(self, dataset: Any, key1: str, key2: str) -> None:
        self.dataset = dataset
        self.key1 = key1
        self.key2 = key2

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"text": self.dataset[i][self.key1], "text_pair": self.dataset[i][self.key2]}


class PipelineDataset(Dataset[Any]):
    """A function of every item of a dataset.

    Args:
        dataset: with a length.
        process: the function.
        params: its further arguments.
    """

    def __init__(self, dataset: Any, process: Callable[..., Any], params: dict[str, Any]) -> None:
        self.dataset = dataset
        self.process = process
        self.params = params

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        return self.process(self.dataset[i], **self.params)


class PipelineIterator(IterableDataset[Any]):
    """A function of every item of an iterable, one after the other.

    Args:
        loader: the iterable.
        infer: the function.
        params: its further arguments.
        loader_batch_size: the items are batches of so many rows, and each row of the result is given alone, with a
            first axis of 1; None or 1 for results as they are.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        infer: Callable[..., Any],
        params: dict[str, Any],
        loader_batch_size: int | None = None,
    ) -> None:
        self.loader: Any = loader
        self.infer = infer
        self.params = params
        self.loader_batch_size = None if loader_batch_size == 1 else loader_batch_size

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.iterator = self._results()
        return self

    def __next__(self) -> Any:
        return next(self.iterator)

    def _results(self) -> Iterator[Any]:
        for item in self.loader:
            result = self.infer(item, **self.params)
            if self.loader_batch_size is None:
                yield result
                continue
            batch = result[0] if isinstance(result, tuple) else result
            first = next(iter(batch.values())) if isinstance(batch, Mapping) else batch
            yield from (row_of(batch, i) for i in range(len(first)))


class PipelineChunkIterator(PipelineIterator):
    """Everything that a function yields for every item of an iterable; see `PipelineIterator`."""

    def _results(self) -> Iterator[Any]:
        for item in self.loader:
            yield from self.infer(item, **self.params)


class PipelinePackIterator(PipelineIterator):
    """Lists of results, each up to one whose entry "is_last" is true; the entry is removed. See `PipelineIterator`."""

    def _results(self) -> Iterator[Any]:
        rows: list[Any] = []
        for row in super()._results():
            is_last = row.pop("is_last")
            rows.append(row)
            if is_last:
                yield rows
                rows = []
