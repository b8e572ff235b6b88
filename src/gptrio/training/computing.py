"""The part of `Trainer` that computes losses and gradients."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from gptrio.errors import InputError
from gptrio.models.base.heads import HeadModel
from gptrio.models.base.pretrained import PreTrainedModel
from gptrio.training import ranks
from gptrio.training.arrays import with_parts
from gptrio.training.losses import label_count
from gptrio.training.parts import TrainerParts, innermost


class ComputingMixin(TrainerParts):
    """Losses and gradients; each method can be overridden.

    Attributes:
        count_first_labels: count the first label of each row, which a language model does not predict, when the loss of
            an update is divided by the number of labels, as Transformers 4.56 does. Losses in the log are then lower
            than those of an evaluation by that share; set to False, they are the mean over what is predicted.
    """

    count_first_labels: bool = True

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch and add its gradients.

        Args:
            model: to be called, maybe wrapped.
            inputs: arguments of its forward, by name.
            num_items_in_batch: labels of all batches of the update; None if they are not counted.

        Returns:
            The loss, as its part of the update's.
        """
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # of optimizers without a schedule
            self.optimizer.train()
        inputs = self._prepare_inputs(inputs)
        if self._is_silent:
            inputs = with_labels_that_count(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        del inputs
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0 and torch.cuda.is_available():
            torch.cuda.empty_cache()
        is_divided = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        if self._is_silent:  # it is computed, as other ranks wait for its gradients, but they are zero
            loss = loss * 0
        elif not is_divided and self.compute_loss_func is None:
            if self._batch_weight == 0:  # no label counts, so that the mean over them is not a number
                return torch.zeros_like(loss.detach())
            loss = loss * self._batch_weight if self._batch_weight != 1 else loss
        self.accelerator.backward(loss)
        detached: Tensor = loss.detach()
        return detached

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """The loss of a batch: the model's own, that of label smoothing, or that of `compute_loss_func`.

        Args:
            model: to be called, maybe wrapped.
            inputs: arguments of its forward, by name; labels are taken out if the model is not to compute its loss.
            return_outputs: return the pair of the loss and the model's output.
            num_items_in_batch: labels of all batches of the update, which divide the loss; None: the mean.

        Raises:
            InputError: the model returned no loss.
        """
        smooths_itself = self._has_own_loss and self.label_smoother is not None and self.compute_loss_func is None
        needs_labels = self.compute_loss_func is not None or (self.label_smoother is not None and not smooths_itself)
        labels = inputs.pop("labels") if needs_labels and "labels" in inputs else None
        options = dict(self._forward_options)
        if "labels" in inputs:
            options |= {"logits": False} if self._omits_logits and not return_outputs else {}
            options |= {"label_smoothing": self.label_smoother.epsilon} if smooths_itself else {}
        if self.model_accepts_loss_kwargs and num_items_in_batch is not None:
            options["num_items_in_batch"] = num_items_in_batch
        outputs = model(**{**options, **inputs})
        if labels is None:
            loss = _loss_of(outputs, inputs)
        elif self.compute_loss_func is not None:
            loss = self.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)
        elif self._predicts_next_tokens:
            loss = self.label_smoother(outputs, labels, shift_labels=True, num_items_in_batch=num_items_in_batch)
        else:
            loss = self.label_smoother(outputs, labels)
        is_summed = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        if self.args.average_tokens_across_devices and is_summed and num_items_in_batch is not None:
            processes = self.accelerator.num_processes
            loss = loss * processes if processes > 1 else loss
        return (loss, outputs) if return_outputs else loss

    def compute_loss_context_manager(self) -> AbstractContextManager[Any]:
        """The context in which losses are computed: that of bf16 or fp16."""
        return self.autocast_smart_context_manager()

    def autocast_smart_context_manager(self, cache_enabled: bool = True) -> AbstractContextManager[Any]:
        """The context of bf16 or fp16."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def _prepare_input(self, data: Any) -> Any:
        """The same structure with every tensor on the device of the run."""
        if isinstance(data, (Mapping, tuple, list)):
            return with_parts(self._prepare_input, data)
        return data.to(device=self.args.device) if isinstance(data, Tensor) else data

    def _prepare_inputs(self, inputs: Any) -> Any:
        """A batch on the device of the run.

        Raises:
            InputError: the batch is empty.
        """
        inputs = self._prepare_input(inputs)
        if len(inputs) == 0:
            taken = ", ".join(self._signature_columns or ())
            raise InputError(f"a batch is empty; the data set has none of the columns that the model takes: {taken}")
        return inputs

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], Tensor | None]:
        """The next batches of an epoch, and the number of their labels if the loss is divided by it.

        Args:
            epoch_iterator: over the batches.
            num_batches: of an update; fewer are returned at the end of the data.
            device: for the number.
        """
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator)]  # noqa: B905 - the data may end first
        counts_labels = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        if not counts_labels or (not batches and ranks.world_size() == 1):
            return batches, None
        smoothed = self.label_smoother is not None and self.compute_loss_func is None
        is_shifted = self._predicts_next_tokens and (smoothed or not self.count_first_labels)
        counts = [label_count(batch, is_shifted) for batch in batches]
        own = sum(0 if count is None else int(count) for count in counts)  # a rank may have no batch left
        total, uncounted = ranks.totals([own, counts.count(None)])
        if uncounted:
            return batches, None
        number = int(total) if self.args.average_tokens_across_devices else own
        return batches, torch.tensor(number, device=device)

    def floating_point_ops(self, inputs: Any) -> int:
        """Operations of a forward and backward pass, if the model can tell."""
        count = getattr(self.model, "floating_point_ops", None)
        return 0 if count is None else count(inputs)

    def _count_tokens(self, inputs: Any) -> None:
        """Add the tokens of a batch, and of those of other ranks, to the state; a batch that is repeated has none."""
        main = getattr(self.model, "main_input_name", "input_ids")
        if main in inputs:
            tokens = 0 if self._is_silent else inputs[main].numel()
            self.state.num_input_tokens_seen += int(ranks.total(tokens))

    def _computes_loss_alone(self) -> bool:
        """Whether no function needs the outputs of the model, and `compute_loss` is not overridden."""
        return type(self).compute_loss is ComputingMixin.compute_loss and self.compute_loss_func is None


def with_labels_that_count(inputs: Any) -> Any:
    """A batch of which every label counts, so that its loss is finite."""
    labels = inputs.get("labels") if isinstance(inputs, Mapping) else None
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return inputs
    return {**inputs, "labels": labels.clamp(min=0)}


def forward_options(model: Any) -> dict[str, Any]:
    """Arguments by which a model of this project leaves out what training does not need: the cache."""
    inner = innermost(model)
    if not isinstance(inner, PreTrainedModel):
        return {}
    return {"use_cache": False} if "use_cache" in inspect.signature(inner.forward).parameters else {}


def has_forward_of(model: Any, *heads: type[HeadModel]) -> bool:
    """Whether a model's forward is that of one of these heads, which takes more than Transformers' does."""
    inner = innermost(model)
    forward = None if "forward" in vars(inner) else getattr(type(inner).forward, "positional", None)
    return any(isinstance(inner, head) and forward is getattr(head.forward, "positional", 0) for head in heads)


def accepts_loss_kwargs(model: Any) -> bool:
    """Whether a model divides its loss by `num_items_in_batch`: it says so, or takes any further argument."""
    inner = innermost(model)
    if hasattr(inner, "accepts_loss_kwargs"):
        return bool(inner.accepts_loss_kwargs)
    parameters = inspect.signature(inner.forward).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def predicts_next_tokens(model: Any) -> bool:
    """Whether a model's labels are its inputs, shifted."""
    name = type(innermost(model)).__name__
    return name.endswith(("ForCausalLM", "LMHeadModel"))


def find_labels(model_class: type) -> list[str]:
    """Names of a model's inputs that are labels."""
    names = list(inspect.signature(model_class.forward).parameters)  # type: ignore[attr-defined]  # of every module
    is_of_spans = "QuestionAnswering" in model_class.__name__
    return [name for name in names if "label" in name or (is_of_spans and name in ("start_positions", "end_positions"))]


def can_return_loss(model_class: type) -> bool:
    """Whether a model returns a loss without labels: it has an argument `return_loss` that is True by default."""
    parameter = inspect.signature(model_class.forward).parameters.get("return_loss")  # type: ignore[attr-defined]  # of every module
    return parameter is not None and parameter.default is True


def _loss_of(outputs: Any, inputs: Any) -> Any:
    if not isinstance(outputs, dict):
        return outputs[0]
    if outputs.get("loss") is None:
        raise InputError(
            f"the model returned {', '.join(outputs)}, but no loss, for the inputs {', '.join(inputs)}; the data needs "
            "labels, in a column 'labels' or those of label_names, or made by the data_collator"
        )
    return outputs["loss"]
