"""The loss of a language model without the scores of all positions, and when the scores are needed after all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from gptrio.kernels.cpu_decode import Reason
from gptrio.models.base.inputs import missing_labels
from gptrio.nn.fast_call import is_watched
from gptrio.nn.linear import is_known_linear, weight_view
from gptrio.nn.linear_loss import linear_cross_entropy
from gptrio.nn.losses import IGNORE, causal_lm_loss, shifted_labels

if TYPE_CHECKING:
    from gptrio.models.base.heads import CausalLMHead


def full_logits_reason(model: CausalLMHead) -> Reason | None:
    """Why the loss of a model needs the scores of all positions at once; None if it does not."""
    head = model.get_output_embeddings()
    if model.loss_function is not causal_lm_loss:
        return Reason("the model has a loss_function of its own, which takes the logits")
    if not isinstance(head, nn.Module) or not is_known_linear(head):
        return Reason(f"the head is a {type(head).__name__}")
    view = weight_view(head)
    if view.bias is not None or view.is_in_out or not view.weight.is_floating_point():
        return Reason("the head has a bias, or a weight that is transposed or quantized")
    if type(view.weight) is not nn.Parameter:
        return Reason(f"the weight of the head is a {type(view.weight).__name__}")
    if is_watched(head):
        return Reason("the head has hooks or a forward of its own")
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return Reason("torch compiles or traces the call")
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return Reason("torch.func transforms the call")
    return None


def language_loss(model: CausalLMHead, states: Tensor, labels: Tensor | None, options: dict[str, Any]) -> Tensor:
    """The loss of a language model, in memory for the scores of some positions where that can be.

    Args:
        model: its head and its loss are used.
        states: (..., T, C) what the head reads.
        labels: (..., T), shifted inside.
        options: of `causal_lm_loss`.

    Raises:
        InputError: there are no labels.
    """
    if labels is None and options.get("shift_labels") is None:
        raise missing_labels()
    vocab_size = model.config.vocab_size
    if full_logits_reason(model) is not None:
        logits = model.get_output_embeddings()(states)
        return model.loss_function(logits, labels, vocab_size=vocab_size, **options)
    rest = dict(options)
    ignore_index = rest.setdefault("ignore_index", IGNORE)
    targets = shifted_labels(labels, ignore_index, rest.pop("shift_labels", None))
    weight = cast(Tensor, model.get_output_embeddings().weight)
    return linear_cross_entropy(states.reshape(-1, states.shape[-1]), weight, targets.reshape(-1), **rest)
