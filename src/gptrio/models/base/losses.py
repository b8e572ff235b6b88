"""The loss of a model, as a function that can be replaced (`model.loss_function = ...`) and is called as upstream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from gptrio.nn.losses import classification_loss, infer_problem_type, next_token_loss, span_loss, token_loss

LossFunction = Callable[..., Tensor]


def causal_lm_loss(logits: Tensor, labels: Tensor | None, vocab_size: int | None = None, **options: Any) -> Tensor:
    """Loss of a language model; `options` as for `gptrio.nn.losses.next_token_loss`, `vocab_size` has no effect."""
    return next_token_loss(logits, labels, **options)


def sequence_classification_loss(logits: Tensor, labels: Tensor, pooled_logits: Tensor, config: Any) -> Tensor:
    """Loss of `pooled_logits` (B, num_labels); sets `config.problem_type` if it says nothing."""
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
        loss_type: the part of the class's name that says which loss it has, such as "ForCausalLM"; None if none does.
    """

    loss_type: str | None
    _loss_function: LossFunction | None = None

    @property
    def loss_function(self) -> LossFunction:
        """The function that was set, or the one of `loss_type`; that of language models without one.

        It is called with `logits`, `labels`, `vocab_size` and the forward's further keywords by a language model; with
        `logits`, `labels`, `pooled_logits`, `config` by a classifier of sequences; with `logits`, `labels`, `config` by
        one of tokens; with start and end logits, start and end positions for question answering.
        """
        return self._loss_function or _LOSSES.get(self.loss_type or "", causal_lm_loss)

    @loss_function.setter
    def loss_function(self, value: LossFunction | None) -> None:
        self._loss_function = value


def loss_type_of(class_name: str) -> str | None:
    """The kind of loss that the name of a model class says."""
    return next((name for name in _LOSSES if name in class_name), None)
