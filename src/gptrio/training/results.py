"""What training and evaluation return, and the figures of their speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy import ndarray

    Arrays: TypeAlias = "ndarray[Any, Any] | tuple[Any, ...]"


class EvalPrediction:
    """Predictions beside labels, as `compute_metrics` gets them; unpacks as `predictions, label_ids`.

    Args:
        predictions: (rows, ...) of the model, or a tuple of such arrays.
        label_ids: (rows, ...) to be predicted, or a tuple of such arrays.
        inputs: of the model, if `include_for_metrics` has "inputs"; then a third part.
        losses: (rows,) if `include_for_metrics` has "loss"; then the last part.
    """

    def __init__(
        self, predictions: Arrays, label_ids: Arrays, inputs: Arrays | None = None, losses: Arrays | None = None
    ) -> None:
        self.predictions = predictions
        self.label_ids = label_ids
        self.inputs = inputs
        self.losses = losses
        self.elements = (predictions, label_ids, *(part for part in (inputs, losses) if part is not None))

    def __iter__(self) -> Iterator[Arrays]:
        return iter(self.elements)

    def __getitem__(self, idx: int) -> Arrays:
        if not 0 <= idx < len(self.elements):
            raise IndexError(f"part {idx} of an EvalPrediction does not exist; it has {len(self.elements)}")
        return self.elements[idx]


class EvalLoopOutput(NamedTuple):
    """What a loop over an evaluation set returns."""

    predictions: Arrays
    label_ids: Arrays | None
    metrics: dict[str, float] | None
    num_samples: int | None


class PredictionOutput(NamedTuple):
    """What `Trainer.predict` returns."""

    predictions: Arrays
    label_ids: Arrays | None
    metrics: dict[str, float] | None


class TrainOutput(NamedTuple):
    """What `Trainer.train` returns: number of updates, mean loss, figures."""

    global_step: int
    training_loss: float
    metrics: dict[str, float]


def speed_metrics(
    split: str,
    start_time: float,
    num_samples: int | None = None,
    num_steps: int | None = None,
    num_tokens: int | None = None,
) -> dict[str, float]:
    """Seconds since a start, and samples, steps and tokens per second.

    Args:
        split: prefix of the keys, such as "train".
        start_time: what `time.time()` returned at the start.
        num_samples: left out of the result if None, as are the next two.
        num_steps: updates, or batches of an evaluation.
        num_tokens: tokens.
    """
    runtime = time.time() - start_time
    result = {f"{split}_runtime": round(runtime, 4)}
    counts = {"samples": num_samples, "steps": num_steps, "tokens": num_tokens}
    if runtime > 0:
        rates = {name: count / runtime for name, count in counts.items() if count is not None}
        result |= {f"{split}_{name}_per_second": round(rate, 3) for name, rate in rates.items()}
    return result
