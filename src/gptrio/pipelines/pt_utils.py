"""Datasets that select entries of another dataset, as input of pipelines."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset


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
