"""Results of a pipeline over many inputs: computed as they are asked for, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from gptrio.utils import logging

Report = Callable[[float], None]  # is told which part of some inputs is done, from 0 to 1


def ignore(part: float) -> None:
    """The report of a run that nobody watches."""


class Results(Iterator[Any]):
    """Results of a pipeline, in the order of its inputs.

    A terminal shows a progress bar after the first second.

    Args:
        run: results of some inputs.
        inputs: all of them.
        window: most inputs of a run.
        count: number of inputs, if it is known.
    """

    def __init__(
        self, run: Callable[[list[Any], Report], list[Any]], inputs: Iterable[Any], window: int, count: int | None
    ) -> None:
        self._count = count
        self._results = self._run(run, iter(inputs), window)

    def _run(self, run: Callable[[list[Any], Report], list[Any]], inputs: Iterator[Any], window: int) -> Iterator[Any]:
        is_hidden = None if logging.is_progress_bar_enabled() else True  # None: unless it is a terminal
        done = 0
        torch.empty((), dtype=torch.int64).random_()  # as a DataLoader does, for the samples of a seeded program
        with logging.tqdm(total=self._count, delay=1, disable=is_hidden) as bar:
            while items := list(islice(inputs, window)):

                def report(part: float, before: int = done, size: int = len(items)) -> None:
                    bar.update(before + int(part * size) - bar.n)

                results = run(items, report)
                done += len(items)
                bar.update(done - bar.n)
                yield from results

    def __len__(self) -> int:
        if self._count is None:
            raise TypeError("a generator has no length, and neither have its results")
        return self._count

    def __iter__(self) -> Results:
        return self

    def __next__(self) -> Any:
        return next(self._results)


def is_column(inputs: Any) -> bool:
    """Whether an input is a dataset of the package `datasets`, or a column of one."""
    return type(inputs).__module__.partition(".")[0] == "datasets"
