"""Losses of the heads, and `loss_function`, by which a model calls its own or one that the user has set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptrio.errors import InputError, TokenIdError

IGNORE = -100


def next_token_loss(
    logits: Tensor,
    labels: Tensor | None,
    num_items_in_batch: int | Tensor | None = None,
    ignore_index: int = IGNORE,
    shift_labels: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of each token given those before it, in float32.

    Args:
        logits: (..., T, V).
        labels: (..., T); position t is predicted by the logits at t - 1. Entries of `ignore_index` do not count.
        num_items_in_batch: divide the sum by this count instead of the number of labels (gradient accumulation).
        ignore_index: the label that does not count.
        shift_labels: (..., T) labels that are shifted already; replaces `labels`.
        label_smoothing: share of the target that is spread evenly over all tokens.
    """
    shift_labels = shifted_labels(labels, ignore_index, shift_labels)
    flat = logits.float().reshape(-1, logits.shape[-1])
    return token_loss(flat, shift_labels.reshape(-1), num_items_in_batch, ignore_index, label_smoothing)


def shifted_labels(labels: Tensor | None, ignore_index: int, shift_labels: Tensor | None = None) -> Tensor:
    """`shift_labels`, or made of `labels` (..., T): entry t is the label at t + 1, and the last one does not count."""
    if shift_labels is not None:
        return shift_labels
    assert labels is not None
    return F.pad(labels, (0, 1), value=ignore_index)[..., 1:]


def token_loss(
    logits: Tensor,
    labels: Tensor,
    num_items_in_batch: int | Tensor | None = None,
    ignore_index: int = IGNORE,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of logits (N, V) against labels (N,), averaged over those that count.

    Args:
        logits: (N, V).
        labels: (N,).
        num_items_in_batch: divide the sum by this count instead of the number of labels.
        ignore_index: the label that does not count.
        label_smoothing: share of the target that is spread evenly over all classes.

    Raises:
        InputError: the numbers of logits and labels differ.
        TokenIdError: a label is not a class (on the CPU; on a GPU, torch raises its own error later).
    """
    check_count(logits.shape, labels)
    labels = labels.to(logits.device)
    options: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    if num_items_in_batch is None:
        return _cross_entropy(logits, labels, reduction="mean", **options)
    return divided(_cross_entropy(logits, labels, reduction="sum", **options), num_items_in_batch)


def divided(total: Tensor, count: int | Tensor) -> Tensor:
    """A sum of losses over a count, which may lie on another device."""
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)


def check_count(shape: tuple[int, ...], labels: Tensor) -> None:
    """Raise InputError unless there is one label for each of the logits of a shape (..., V)."""
    if shape[:-1] != labels.shape:
        raise InputError(f"{labels.numel()} labels do not fit logits of shape {tuple(shape)}; one label per position")


def _cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int, **options: Any) -> Tensor:
    try:
        return F.cross_entropy(logits, labels, ignore_index=ignore_index, **options)
    except IndexError as error:
        raise no_class_error(labels[labels != ignore_index], logits.shape[-1], ignore_index) from error


def no_class_error(labels: Tensor, classes: int, ignore_index: int) -> TokenIdError:
    """The error of labels (N,) of which some are not below the number of classes."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    return TokenIdError(
        f"label {int(wrong[0])} is none of the {classes} classes; expected 0 to {classes - 1}, or {ignore_index} to be "
        "ignored"
    )


def infer_problem_type(num_labels: int, labels: Tensor) -> str:
    """The kind of classification that label dtype and count imply."""
    if num_labels == 1:
        return "regression"
    return "single_label_classification" if labels.dtype in (torch.long, torch.int) else "multi_label_classification"


def classification_loss(logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """Loss of one prediction per row.

    Args:
        logits: (B, num_labels).
        labels: (B,) class ids, (B,) or (B, num_labels) real values, or (B, num_labels) zeros and ones.
        problem_type: "regression" (mean squared error), "single_label_classification" (cross-entropy) or
            "multi_label_classification" (binary cross-entropy of each label).

    Raises:
        InputError: the number of labels does not fit, or there is no such problem type.
        TokenIdError: a label is not a class.
    """
    labels = labels.to(logits.device)
    if problem_type == "single_label_classification":
        return token_loss(logits, labels.reshape(-1))
    if problem_type in ("regression", "multi_label_classification"):
        if labels.numel() != logits.numel():
            raise InputError(
                f"labels of shape {tuple(labels.shape)} do not fit {problem_type} with logits {tuple(logits.shape)}; "
                "expected one value for each of them"
            )
        values = labels.reshape(logits.shape).to(logits.dtype)
        is_regression = problem_type == "regression"
        return F.mse_loss(logits, values) if is_regression else F.binary_cross_entropy_with_logits(logits, values)
    raise InputError(
        f"problem_type={problem_type!r} is not known; use 'regression', 'single_label_classification' or "
        "'multi_label_classification'"
    )


def span_loss(start_logits: Tensor, end_logits: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Mean cross-entropy of the first and the last token of a span; positions outside the text do not count.

    Args:
        start_logits: (B, T).
        end_logits: (B, T).
        starts: (B,) or (B, 1) first tokens.
        ends: (B,) or (B, 1) last tokens.
    """
    length = start_logits.shape[1]
    losses = [
        token_loss(logits, target.reshape(-1).to(logits.device).clamp(0, length), ignore_index=length)
        for logits, target in ((start_logits, starts), (end_logits, ends))
    ]
    return (losses[0] + losses[1]) / 2


LossFunction = Callable[..., Tensor]


def causal_lm_loss(logits: Tensor, labels: Tensor | None, vocab_size: int | None = None, **options: Any) -> Tensor:
    """Loss of a language model; `options` as for `next_token_loss`, `vocab_size` has no effect."""
    return next_token_loss(logits, labels, **options)


def sequence_classification_loss(logits: Tensor, labels: Tensor, pooled_logits: Tensor, config: Any) -> Tensor:
    """Loss of `pooled_logits` (B, num_labels); sets `config.problem_type` if that is None."""
    if config.problem_type is None:
        config.problem_type = infer_problem_type(config.num_labels, labels)
    return classification_loss(pooled_logits, labels, config.problem_type)


def token_classification_loss(logits: Tensor, labels: Tensor, config: Any) -> Tensor:
    """Loss of logits (B, T, num_labels) against labels (B, T)."""
    return token_loss(logits.view(-1, config.num_labels), labels.view(-1))


_LOSSES: dict[str, LossFunction] = {
    "ForCausalLM": causal_lm_loss,
    "ForQuestionAnswering": span_loss,
    "ForSequenceClassification": sequence_classification_loss,
    "ForTokenClassification": token_classification_loss,
}


class LossMixin(nn.Module):
    """A model whose heads compute their loss by `loss_function`.

    Attributes:
        loss_type: the part of the class's name that selects the loss, such as "ForCausalLM"; None if there is none.
    """

    loss_type: str | None
    _loss_function: LossFunction | None = None

    @property
    def loss_function(self) -> LossFunction:
        """The function that was set, or else that of `loss_type`, by default the loss of language models.

        It is called with `logits`, `labels`, `vocab_size` and the forward's further keywords by a language model; with
        `logits`, `labels`, `pooled_logits`, `config` by a classifier of sequences; with `logits`, `labels`, `config` by
        one of tokens; with start and end logits, start and end positions for question answering.
        """
        return self._loss_function or _LOSSES.get(self.loss_type or "", causal_lm_loss)

    @loss_function.setter
    def loss_function(self, value: LossFunction | None) -> None:
        self._loss_function = value


def loss_type_of(class_name: str) -> str | None:
    """The part of a model class's name that selects its loss; None if there is none."""
    return next((name for name in _LOSSES if name in class_name), None)
