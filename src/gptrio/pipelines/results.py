"""Results of a pipeline over many inputs: computed as they are asked for, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch

from gptrio.errors import GptrioError
from gptrio.pipelines.pt_utils import PipelineIterator
from gptrio.utils import logging

Report = Callable[[float], object]  # is told which part of some inputs is done, from 0 to 1


def ignore(part: float) -> None:
    """The report of a run that nobody watches."""


@contextmanager
def progress(total: int | None) -> Iterator[Report]:
    """Yield a function that is told how many inputs are done, of which a terminal shows a bar after the first second.

    Args:
        total: number of inputs, if it is known.

    Yields:
        `ignore` if there is nothing to show the bar on.
    """
    is_hidden = None if logging.is_progress_bar_enabled() else True  # None: unless it is a terminal
    shown = None if total is None else "{percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}]"
    with logging.tqdm(total=total, delay=1, disable=is_hidden, bar_format=shown) as bar:
        yield ignore if bar.disable else lambda done: bar.update(done - bar.n)


class Results(PipelineIterator):
    """Results of a pipeline, in the order of its inputs, computed as they are asked for; inputs of another pipeline.

    Args:
        run: results of some inputs.
        inputs: all of them.
        window: most inputs of a run.
        count: number of inputs, if it is known.
    """

    def __init__(
        self, run: Callable[[list[Any], Report], list[Any]], inputs: Iterable[Any], window: int, count: int | None
    ) -> None:
        super().__init__(inputs, run, {})
        self._count = count
        self.iterator = self._run(run, iter(inputs), window)

    def _run(self, run: Callable[[list[Any], Report], list[Any]], inputs: Iterator[Any], window: int) -> Iterator[Any]:
        done = 0
        torch.empty((), dtype=torch.int64).random_()  # as a DataLoader does, for the samples of a seeded program
        with progress(self._count) as report:
            while items := list(islice(inputs, window)):
                try:
                    found = run(items, part_of(report, done, len(items)))
                except GptrioError as error:
                    error.index = None if error.index is None else done + error.index
                    raise
                yield from found
                done += len(items)

    def __len__(self) -> int:
        if self._count is None:
            raise TypeError("a generator has no length, and neither have its results")
        return self._count

    def __iter__(self) -> Results:
        return self


def part_of(report: Report, before: float, size: float) -> Report:
    """The report of a part that begins at `before` and has a length of `size`."""
    return ignore if report is ignore else lambda part: report(before + part * size)


def is_column(inputs: Any) -> bool:
    """Whether an input is a dataset of the package `datasets`, or a column of one."""
    return type(inputs).__module__.partition(".")[0] == "datasets"
