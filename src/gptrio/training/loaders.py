"""Loaders of batches as a run uses them: divided among its processes, on its device, from any place of an epoch on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from torch.utils.data import DataLoader

from gptrio.errors import InputError
from gptrio.training.order import EpochSampler, RankSampler, RankStream, has_length, is_streamed


class BatchLoader(DataLoader[Any]):
    """A loader whose batches are on the device of a run; `prepared` makes it of any other.

    The names are those of accelerate's loaders.

    Attributes:
        accelerator: of the run.
        end_of_dataloader: whether the last batch of an epoch was given, where their number is known.
        remainder: rows of all processes in an incomplete last batch; -1 where that is unknown.
    """

    accelerator: Any
    end_of_dataloader: bool
    remainder: int

    @property
    def device(self) -> Any:
        """Where the batches are."""
        return self.accelerator.device

    @property
    def total_batch_size(self) -> int:
        """Rows of a batch of all processes."""
        sampler: Any = self.batch_sampler
        return int(self.batch_size or getattr(sampler, "batch_size", None) or 1) * int(self.accelerator.num_processes)

    @property
    def total_dataset_length(self) -> int:
        """Rows of the data set."""
        dataset: Any = self.dataset
        return len(dataset.dataset if isinstance(dataset, RankStream) else dataset)

    def set_epoch(self, epoch: int) -> None:
        """Tell what the loader reads from which epoch begins."""
        own = getattr(super(), "set_epoch", None)
        if own is not None:
            own(epoch)
        _set_epoch(self, epoch)

    def __iter__(self) -> Any:
        """The batches, on the device."""
        return self._followed(super().__iter__(), is_moved=True)

    def host_batches(self) -> Iterator[Any]:
        """The batches where the collator made them, so that their labels can be counted without waiting for a GPU."""
        return self._followed(super().__iter__(), is_moved=False)

    def _followed(self, batches: Iterator[Any], is_moved: bool) -> Iterator[Any]:
        accelerator, left = self.accelerator, self._batches_left()
        accelerator.gradient_state.active.append(self)
        self.end_of_dataloader = False
        try:
            for count, batch in enumerate(batches, 1):
                self.end_of_dataloader = count == left
                yield accelerator.place(batch) if is_moved else batch
        finally:
            if self in accelerator.gradient_state.active:
                accelerator.gradient_state.active.remove(self)

    def _batches_left(self) -> int | None:
        """Batches of this epoch from the place on at which the sampler begins; None if that is unknown."""
        if not has_length(self):
            return None
        sampler = sampler_of(self)
        return len(self) - (0 if sampler is None else sampler.start // self.total_batch_size)


def prepared(loader: DataLoader[Any], accelerator: Any) -> DataLoader[Any]:
    """A loader like another, which reads the same data in the same order, with batches on the device of a run."""
    if isinstance(loader, BatchLoader):
        return loader
    kind = type(loader)
    made = cast(BatchLoader, object.__new__(type(kind.__name__, (BatchLoader, kind), {})))
    vars(made).update(vars(loader))
    rows = made.total_dataset_length if has_length(made.dataset) else -1
    vars(made).update(accelerator=accelerator, end_of_dataloader=False)
    made.remainder = -1 if rows < 0 or made.drop_last else rows % made.total_batch_size
    return made


def divided(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader of this rank's batches; one that is divided already, or draws batches in a way of its own, as it is.

    Raises:
        InputError: the loader has batches of no fixed size, which cannot be divided.
    """
    if is_divided(loader):
        return loader
    if loader.batch_size is None:
        raise InputError(
            "a loader with a batch_sampler of its own cannot be divided among processes; give it a sampler and a "
            "batch_size, or divide its batches yourself"
        )
    names = ("batch_size", "collate_fn", "num_workers", "pin_memory", "timeout", "worker_init_fn", "generator")
    options = {name: getattr(loader, name) for name in (*names, "persistent_workers", "prefetch_factor", "drop_last")}
    if is_streamed(loader.dataset):
        return DataLoader(RankStream(loader.dataset, loader.batch_size), **options)
    sampler = RankSampler(cast(Any, loader.sampler), loader.batch_size, loader.drop_last)
    return DataLoader(loader.dataset, sampler=sampler, **options)


def is_divided(loader: Any) -> bool:
    """Whether a loader has batches for one rank."""
    is_of_torch = type(getattr(loader, "sampler", None)).__name__ == "DistributedSampler"
    is_own = isinstance(getattr(loader, "sampler", None), RankSampler)
    return is_of_torch or is_own or isinstance(getattr(loader, "dataset", None), RankStream)


def sampler_of(loader: Any) -> EpochSampler | None:
    """The sampler of a loader if it is one of this project, so that any place in its order can be reached at once."""
    sampler: Any = getattr(loader, "sampler", None)
    sampler = sampler.rows if isinstance(sampler, RankSampler) else sampler
    is_known = isinstance(loader, DataLoader) and isinstance(sampler, EpochSampler) and loader.batch_size is not None
    return sampler if is_known else None


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell a loader, or what it reads from, which epoch begins."""
    if callable(getattr(loader, "set_epoch", None)):
        loader.set_epoch(epoch)
    if not isinstance(loader, BatchLoader):
        _set_epoch(loader, epoch)


def _set_epoch(loader: Any, epoch: int) -> None:
    parts: list[Any] = [getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)]
    parts += [getattr(parts[0], "sampler", None), getattr(loader, "dataset", None)]
    for part in {id(part): part for part in parts}.values():
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)


def batches_from(loader: Iterable[Any], index: int) -> Iterator[Any]:
    """The batches of an epoch from number `index` on; those before it are read only if the sampler is another's."""
    sampler = sampler_of(loader)
    if sampler is not None:
        own = cast(Any, loader)
        sampler.start = index * own.batch_size * getattr(own.sampler, "world_size", 1)
        return _begun(loader)
    batches = _begun(loader)
    for _ in range(index):  # at once, so that what the loader draws is drawn before training goes on
        next(batches, None)
    return batches


def _begun(loader: Iterable[Any]) -> Iterator[Any]:
    return loader.host_batches() if isinstance(loader, BatchLoader) else iter(loader)
