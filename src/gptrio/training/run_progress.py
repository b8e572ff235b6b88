"""How far a run is: a bar on a terminal, else a line for each loss that is logged."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gptrio.training.callbacks import TrainerCallback


class RunProgress(TrainerCallback):
    """Writes loss, tokens per second and, on a terminal, the time left to standard error.

    Args:
        updates: of the whole run.
        tokens: of an update, about.
    """

    def __init__(self, updates: int, tokens: float) -> None:
        self._tokens, self._begun, self._first = tokens, 0.0, 0
        self._bar: Progress | None = None
        if sys.stderr is not None and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
            self._row = self._bar.add_task("Training", total=updates)

    def __enter__(self) -> RunProgress:
        """Show the bar."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._begun, self._first = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._row, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show a loss."""
        for name, words in (("loss", "loss"), ("eval_loss", "evaluation loss")):
            if name in logs:
                seconds = max(time.monotonic() - self._begun, 1e-9)
                speed = (state.global_step - self._first) * self._tokens / seconds
                self._show(
                    f"update {state.global_step:,} of {state.max_steps:,}: {words} {logs[name]:.4f}, "
                    f"{speed:,.0f} tokens a second"
                )

    def _show(self, words: str) -> None:
        if self._bar is not None:
            self._bar.update(self._row, description=words)
        else:
            print(words, file=sys.stderr, flush=True)
