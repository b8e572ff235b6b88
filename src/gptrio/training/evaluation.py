"""The part of `Trainer` that evaluates and predicts."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptrio.errors import warn
from gptrio.training import ranks
from gptrio.training.arrays import (
    EvalLoopContainer,
    bytes_of,
    denumpify_detensorize,
    find_batch_size,
    mapped,
    nested_detach,
)
from gptrio.training.computing import ComputingMixin
from gptrio.training.loading import LoadingMixin
from gptrio.training.metrics import MetricsMixin
from gptrio.training.order import has_length
from gptrio.training.results import EvalLoopOutput, EvalPrediction, PredictionOutput, speed_metrics

_log = logging.getLogger(__name__)
_MUCH = 2**30  # bytes of predictions above which keeping them is worth a warning


class EvaluationMixin(LoadingMixin, ComputingMixin, MetricsMixin):
    """Evaluation; each method can be overridden."""

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Compute the loss, and the metrics of `compute_metrics`, over a data set, and log them.

        Args:
            eval_dataset: the trainer's by default; of a dictionary, each is evaluated, its name in the keys.
            ignore_keys: outputs of the model that are no predictions.
            metric_key_prefix: of the keys of the result.
        """
        is_given = eval_dataset is not None
        eval_dataset = eval_dataset if is_given else self.eval_dataset
        if isinstance(eval_dataset, dict):
            metrics: dict[str, float] = {}
            for name, dataset in eval_dataset.items():
                prefix = f"{metric_key_prefix}_{name}"
                metrics |= self.evaluate(dataset if is_given else name, ignore_keys, prefix)
            return metrics
        self._memory.start("eval")
        loader, start = self.get_eval_dataloader(eval_dataset), time.time()
        output = self.evaluation_loop(
            loader,
            description="Evaluation",
            prediction_loss_only=True if self.compute_metrics is None else None,
            ignore_keys=ignore_keys,
            metric_key_prefix=metric_key_prefix,
        )
        result = self._with_speed(output, metric_key_prefix, start)
        self.log(result)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, result)
        self._memory.stop("eval", result)
        return result

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Compute predictions for a data set, and, if it has labels, the loss and the metrics.

        Args:
            test_dataset: to be predicted.
            ignore_keys: outputs of the model that are no predictions.
            metric_key_prefix: of the metrics' keys.

        Returns:
            predictions (rows, ...), label_ids (rows, ...) or None, metrics; shorter rows are padded with -100.
        """
        self._memory.start("test")
        loader, start = self.get_test_dataloader(test_dataset), time.time()
        output = self.evaluation_loop(
            loader, description="Prediction", ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix
        )
        metrics = self._with_speed(output, metric_key_prefix, start)
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, metrics)
        self._memory.stop("test", metrics)
        return PredictionOutput(output.predictions, output.label_ids, metrics)

    def _with_speed(self, output: EvalLoopOutput, prefix: str, start: float) -> dict[str, float]:
        metrics, samples = output.metrics or {}, output.num_samples or 0
        start += metrics.get(f"{prefix}_model_preparation_time", 0)
        batches = math.ceil(samples / (self.args.eval_batch_size * self.args.world_size))
        metrics.update(speed_metrics(prefix, start, num_samples=samples, num_steps=batches))
        return metrics

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Predict every batch, collect what was predicted and compute the metrics.

        Args:
            dataloader: of batches with or without labels.
            description: "Evaluation" or "Prediction".
            prediction_loss_only: keep no predictions; the argument of the same name by default.
            ignore_keys: outputs of the model that are no predictions.
            metric_key_prefix: of the metrics' keys.
        """
        args, model = self.args, self._model_to_evaluate()
        loss_only = args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        _log.info(f"***** Running {description} *****, batches of {args.eval_batch_size}")
        self.callback_handler.eval_dataloader = dataloader
        keeps_all = description == "Prediction" or not args.batch_eval_metrics  # or else the losses alone
        names = ("losses", "predictions", "labels", "inputs")
        kept = {name: EvalLoopContainer(args.eval_do_concat_batches) for name in names}
        metrics, rows = None, 0
        for step, (inputs, is_last, is_repeated) in enumerate(_in_step(dataloader)):
            rows += 0 if is_repeated else find_batch_size(inputs) or 0
            part = self._evaluate_batch(model, inputs, loss_only, ignore_keys, is_repeated)
            if step == 0 and keeps_all and has_length(dataloader):
                _warn_of_size(bytes_of(part["predictions"]) * len(dataloader))
            for name, values in part.items():
                if values is not None and (keeps_all or name == "losses"):
                    kept[name].add(values)
            self.control = self.callback_handler.on_prediction_step(args, self.state, self.control)
            if args.batch_eval_metrics:
                metrics = self._metrics_of_batch(part, inputs, is_last) or metrics
            elif args.eval_accumulation_steps is not None and (step + 1) % args.eval_accumulation_steps == 0:
                for each in kept.values():
                    each.to_cpu_and_numpy()
        self.gather_function = self.accelerator.gather_for_metrics  # what a subclass sets is for one evaluation
        result = {name: each.get_arrays() for name, each in kept.items()}
        has_pairs = result["predictions"] is not None and result["labels"] is not None
        if self.compute_metrics is not None and not args.batch_eval_metrics and has_pairs:
            metrics = self.compute_metrics(self._eval_prediction(result, result["inputs"]))
        named = self._named(denumpify_detensorize(metrics or {}), result["losses"], metric_key_prefix)
        samples = self._samples(dataloader, int(ranks.total(rows)))
        return EvalLoopOutput(result["predictions"], result["labels"], named, samples)

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """Compute the loss, the logits and the labels of a batch; each is None where there is none.

        Args:
            model: to be called.
            inputs: arguments of its forward, by name.
            prediction_loss_only: return the loss alone.
            ignore_keys: outputs of the model that are no logits; those that its configuration names by default.
        """
        has_labels = bool(self.label_names) and all(inputs.get(name) is not None for name in self.label_names)
        returns_loss = inputs.get("return_loss")
        returns_loss = self.can_return_loss if returns_loss is None else returns_loss
        has_loss = has_labels or (not self.label_names and bool(returns_loss))
        inputs = self._prepare_inputs(inputs)
        if ignore_keys is None:
            config = getattr(self.model, "config", None)
            ignore_keys = [] if config is None else getattr(config, "keys_to_ignore_at_inference", ["past_key_values"])
        labels: Any = None
        if has_loss:  # taken first, as a loss may take them out of the inputs
            labels = nested_detach(tuple(inputs.get(name) for name in self.label_names))
            labels = labels[0] if len(labels) == 1 else labels
        loss = None
        with torch.no_grad(), self.compute_loss_context_manager():
            if has_loss and prediction_loss_only and self._computes_loss_alone():
                return self.compute_loss(model, inputs).detach().mean(), None, None
            if has_loss:
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
                loss = loss.detach().mean()
            else:
                outputs = model(**inputs)
        if prediction_loss_only:
            return loss, None, None
        return loss, _logits(outputs, ignore_keys, has_loss), labels

    # parts of the loop ----------------------------------------------------------------------------------------------

    def _model_to_evaluate(self) -> Any:
        """The model in evaluation mode, cast and moved if it is not being trained."""
        start, args = time.time(), self.args
        model = self._wrap_model(self.model, training=False)
        if not self._is_prepared:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
            self.model_preparation_time = round(time.time() - start, 4)
            self._is_prepared = True
        if not self.is_in_train and (args.fp16_full_eval or args.bf16_full_eval):
            model = model.to(dtype=torch.float16 if args.fp16_full_eval else torch.bfloat16, device=args.device)
        for part in (model, self.optimizer):
            if callable(getattr(part, "eval", None)):
                part.eval()
        return model

    def _evaluate_batch(
        self, model: Any, inputs: Any, loss_only: bool, ignore_keys: list[str] | None, is_repeated: bool
    ) -> dict[str, Any]:
        """Losses (rows,), predictions, labels and inputs of the batches of all ranks; a repeated one has no rows."""
        loss, logits, labels = self.prediction_step(model, inputs, loss_only, ignore_keys=ignore_keys)
        main = getattr(self.model, "main_input_name", "input_ids")
        shown = self._prepare_input(inputs[main]) if "inputs" in self.args.include_for_metrics else None
        if logits is not None and self.preprocess_logits_for_metrics is not None:
            logits = self.preprocess_logits_for_metrics(logits, labels)
        if loss is not None:
            loss = loss.repeat(find_batch_size(inputs) or self.args.eval_batch_size)
        gathered = {"losses": loss, "predictions": logits, "labels": labels, "inputs": shown}
        if is_repeated:
            gathered = mapped(lambda value: value[:0] if isinstance(value, Tensor) else value, gathered)
        return {name: None if value is None else self.gather_function(value) for name, value in gathered.items()}

    def _metrics_of_batch(self, part: dict[str, Any], inputs: Any, is_last: bool) -> dict[str, Any] | None:
        if self.compute_metrics is None or part["predictions"] is None or part["labels"] is None:
            return None
        return self.compute_metrics(self._eval_prediction(part, inputs), compute_result=is_last)

    def _eval_prediction(self, part: dict[str, Any], inputs: Any) -> EvalPrediction:
        included = self.args.include_for_metrics
        return EvalPrediction(
            predictions=part["predictions"],
            label_ids=part["labels"],
            inputs=inputs if "inputs" in included else None,
            losses=part["losses"] if "loss" in included else None,
        )

    def _named(self, metrics: dict[str, Any], losses: Any, prefix: str) -> dict[str, float]:
        """The metrics with the loss, and the prefix before every key."""
        if losses is not None:
            metrics[f"{prefix}_loss"] = float(
                np.concatenate(losses).mean() if isinstance(losses, list) else losses.mean()
            )
        if hasattr(self, "model_preparation_time"):
            metrics[f"{prefix}_model_preparation_time"] = self.model_preparation_time
        head = f"{prefix}_"
        begun = {name: value for name, value in metrics.items() if name.startswith(head)}
        return begun | {head + name: value for name, value in metrics.items() if not name.startswith(head)}

    def _samples(self, dataloader: Any, seen: int) -> int:
        """Number of rows that were evaluated."""
        dataset: Any = getattr(dataloader, "dataset", None)
        if has_length(dataset):
            return len(dataset) or seen
        return (self.num_examples(dataloader) if has_length(dataloader) else seen) or seen

    def _nested_gather(self, tensors: Any, name: str | None = None) -> Any:
        """The tensors of all processes, one after another."""
        return None if tensors is None else self.accelerator.gather(tensors)


def _logits(outputs: Any, ignored: list[str], has_loss: bool) -> Any:
    """The outputs of a model that are predictions; one alone is no tuple."""
    if isinstance(outputs, dict):
        left_out = [*ignored, "loss"] if has_loss else ignored
        logits: Any = tuple(value for name, value in outputs.items() if name not in left_out)
    else:
        logits = outputs[1:] if has_loss else outputs
    logits = nested_detach(logits)
    return logits[0] if not isinstance(logits, Tensor) and len(logits) == 1 else logits


def _in_step(batches: Iterable[Any]) -> Iterator[tuple[Any, bool, bool]]:
    """Each batch, whether it is the last one, and whether it repeats the one before, as other ranks have more."""
    iterator, end = iter(batches), object()
    current = next(iterator, end)
    is_repeated, is_last = current is end, False
    if ranks.most([is_repeated])[0]:
        first = ranks.from_first(None if is_repeated else current)
        if first is None:
            return
        current = first if is_repeated else current
    while not is_last:
        following = next(iterator, end)
        is_last = not ranks.most([following is not end])[0]
        yield current, is_last, is_repeated
        is_repeated = following is end
        current = current if is_repeated else following


def _warn_of_size(size: int) -> None:
    if size > _MUCH:
        warn(
            f"the predictions will take {size / 2**30:.1f} GiB; reduce them by preprocess_logits_for_metrics (such as "
            "logits.argmax(-1)), or compute metrics batch by batch with batch_eval_metrics=True"
        )
