"""The loss of an update over all of its batches, and label smoothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.training import ranks
from gptrio.training.arrays import find_batch_size


@dataclass
class LabelSmoother:
    """Cross-entropy against labels of which a share is spread evenly over all classes.

    Args:
        epsilon: the share.
        ignore_index: the label that does not count.
    """

    epsilon: float = 0.1
    ignore_index: int = -100

    def __call__(
        self, model_output: Any, labels: Tensor, shift_labels: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The loss of a model's output.

        Args:
            model_output: with `logits` (..., V), or a tuple that begins with them.
            labels: (...) classes.
            shift_labels: of a language model, whose logits at t are of the label at t + 1.
            num_items_in_batch: divide by it rather than by the number of labels that count.
        """
        logits = model_output["logits"] if isinstance(model_output, dict) else model_output[0]
        if shift_labels:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        losses = -F.log_softmax(logits, dim=-1)
        labels = labels.unsqueeze(-1) if labels.dim() == losses.dim() - 1 else labels
        ignored = labels.eq(self.ignore_index)
        of_label = losses.gather(-1, labels.clamp(min=0)).masked_fill(ignored, 0.0).sum()
        of_all = losses.sum(-1, keepdim=True, dtype=torch.float32).masked_fill(ignored, 0.0).sum()
        count = (~ignored).sum() if num_items_in_batch is None else num_items_in_batch
        return (1 - self.epsilon) * of_label / count + self.epsilon * of_all / (count * losses.shape[-1])


def label_count(batch: Any, is_shifted: bool = False) -> Tensor | None:
    """Number of labels of a batch that count; None if it has no tensor of labels.

    Args:
        batch: inputs of the model.
        is_shifted: leave out the first label of each row, which a language model does not predict.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor):
        return None
    return (labels[..., 1:] if is_shifted else labels).ne(-100).sum()


def batch_weights(
    batches: Sequence[Any], is_shifted: bool = False, repeated: int = 0, is_over_ranks: bool = False
) -> list[float]:
    """The share of each batch in the loss of an update: its part of the labels that count, or else of the rows.

    Args:
        batches: of this rank.
        is_shifted: see `label_count`.
        repeated: how many of the last batches count for nothing.
        is_over_ranks: the update is that of all ranks, whose losses are averaged; so the shares are that much larger.
    """
    if len(batches) == 1 and not repeated and not is_over_ranks:
        return [1.0]
    real = batches[: len(batches) - repeated]
    counts = [label_count(batch, is_shifted) for batch in real]
    sizes = [find_batch_size(batch) if count is None else int(count) for batch, count in zip(real, counts, strict=True)]
    if None in sizes:
        sizes = [1] * len(real)
    total, processes = sum(size or 0 for size in sizes), 1
    if is_over_ranks:
        total, processes = int(ranks.total(total)), ranks.world_size()
    if total == 0:
        return [1 / len(batches)] * len(batches)
    return [(size or 0) / total * processes for size in sizes] + [0.0] * repeated
