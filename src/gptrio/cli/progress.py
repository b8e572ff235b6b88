"""How much of a long piece of work is done, on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer

_SHORT = 0.5  # seconds; what takes less shows nothing


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how much is done, or that work goes on, if standard error is a terminal, until the block ends.

    Args:
        what: the work, such as "Scoring".

    Yields:
        What to call with the numbers done and of all.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True, redirect_stdout=False)
    task = bar.add_task(what, total=None)
    timer = Timer(_SHORT, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
