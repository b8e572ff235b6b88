"""Callbacks that show a run in the terminal: a progress bar by rich, or plain lines."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Any

from gptrio.training.callbacks import TrainerCallback

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from gptrio.training.arguments import TrainingArguments
    from gptrio.training.callbacks import Decision
    from gptrio.training.state import TrainerControl, TrainerState

_PLACES = 2  # of the epoch, where people read it


class ProgressCallback(TrainerCallback):
    """Shows how far training and evaluation are, on standard error if that is a terminal, and prints what is logged.

    Args:
        max_str_len: longest text that is printed.
    """

    def __init__(self, max_str_len: int = 100) -> None:
        self.max_str_len = max_str_len
        self.bars: Progress | None = None
        self.training_bar: TaskID | None = None
        self.prediction_bar: TaskID | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """Show a bar of all updates."""
        self._stop()  # what an interrupted run left
        if state.is_world_process_zero:
            self.training_bar = self._started().add_task("Training", total=state.max_steps, completed=state.global_step)
        return None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """Move the bar."""
        if self.bars is not None and self.training_bar is not None:
            self.bars.update(self.training_bar, completed=state.global_step)
        return None

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """Show and move a bar of the evaluation's batches, if their number is known."""
        loader = kwargs.get("eval_dataloader")
        try:
            total = len(loader)  # type: ignore[arg-type]  # a loader without a length raises the error that is caught
        except TypeError:
            return None
        if state.is_world_process_zero:
            if self.prediction_bar is None:
                self.prediction_bar = self._started().add_task("Evaluation", total=total)
            self._started().advance(self.prediction_bar)
        return None

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """Take the evaluation's bar away."""
        if self.bars is not None and self.prediction_bar is not None:
            self.bars.remove_task(self.prediction_bar)
            self.prediction_bar = None
        if self.training_bar is None:
            self._stop()
        return None

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any, **kwargs: Any
    ) -> Decision:
        """Take the prediction's bar away."""
        return self.on_evaluate(args, state, control)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Decision:
        """Print what is logged during training, above the bar."""
        if state.is_world_process_zero and self.training_bar is not None:
            logs = {name: self._shortened(value) for name, value in kwargs["logs"].items() if name != "total_flos"}
            if "epoch" in logs:
                logs["epoch"] = round(logs["epoch"], _PLACES)
            print(logs, flush=True)
        return None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """Leave the bar as it is at the end."""
        self._stop()
        return None

    def _started(self) -> Progress:
        """The bars, on the terminal."""
        if self.bars is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            console = Console(stderr=True)
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
                speed_estimate_period=600,  # seconds; updates may be slow
                disable=not (console.is_terminal or console.is_jupyter),
            )
            self.bars.start()
            atexit.register(self._stop)  # shows the cursor again after an error
        return self.bars

    def _stop(self) -> None:
        if self.bars is not None:
            self.bars.stop()
            atexit.unregister(self._stop)
        self.bars = self.training_bar = self.prediction_bar = None

    def _shortened(self, value: Any) -> Any:
        if isinstance(value, str) and len(value) > self.max_str_len:
            return (
                f"[String too long to display, length: {len(value)} > {self.max_str_len}. "
                "Consider increasing `max_str_len` if needed.]"
            )
        return value


class PrinterCallback(TrainerCallback):
    """Prints what is logged."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Decision:
        """Print what is logged, without the number of floating-point operations."""
        if state.is_local_process_zero:
            print({name: value for name, value in kwargs["logs"].items() if name != "total_flos"}, flush=True)
        return None
