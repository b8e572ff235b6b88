"""Callbacks: what inspects a run at its events and decides what happens next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gptrio.errors import OptionError, warn
from gptrio.training.enums import IntervalStrategy, SaveStrategy
from gptrio.training.state import ExportableState, TrainerControl, TrainerState

if TYPE_CHECKING:
    from typing import TypeAlias

    from gptrio.training.arguments import TrainingArguments

    Decision: TypeAlias = TrainerControl | None  # the changed control, or None where nothing changes


class TrainerCallback:
    """Base of callbacks, whose methods are called at the events of a run.

    Each gets the arguments, the state and the control by position, and by name `model`, `processing_class`,
    `optimizer`, `lr_scheduler`, `train_dataloader`, `eval_dataloader`, and `metrics` or `logs` where they are named
    below. A method that changes the control returns it; None leaves it as it is.
    """

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """The trainer is built."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """Training begins."""

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """Training has ended."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """An epoch begins."""

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """An epoch has ended."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """An update begins; it may take several batches."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """Gradients are clipped, and the optimizer has not used them yet."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """The optimizer has used the gradients, which are still there."""

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """A batch that is not the last one of its update is done."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """An update is done."""

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """An evaluation has ended; `metrics` are its figures."""

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> Decision:
        """A prediction has ended; `metrics` are its figures."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Decision:
        """A checkpoint is saved."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Decision:
        """`logs` were logged."""

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """A batch of an evaluation or prediction is done."""


class DefaultFlowCallback(TrainerCallback):
    """Logs, evaluates, saves and stops as the arguments say."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """Decide by the number of updates that are done."""
        step = state.global_step
        if step == 1 and args.logging_first_step:
            control.should_log = True
        if args.logging_strategy == IntervalStrategy.STEPS and step % state.logging_steps == 0:
            control.should_log = True
        is_evaluated = args.eval_strategy == IntervalStrategy.STEPS and step % state.eval_steps == 0
        if is_evaluated and (args.eval_delay or 0) <= step:
            control.should_evaluate = True
        if args.save_strategy == SaveStrategy.STEPS and state.save_steps > 0 and step % state.save_steps == 0:
            control.should_save = True
        if step >= state.max_steps:
            control.should_training_stop = True
            if args.save_strategy == SaveStrategy.STEPS:
                control.should_save = True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """Decide for strategies of whole epochs."""
        if args.logging_strategy == IntervalStrategy.EPOCH:
            control.should_log = True
        if args.eval_strategy == IntervalStrategy.EPOCH and (args.eval_delay or 0) <= (state.epoch or 0):
            control.should_evaluate = True
        if args.save_strategy == SaveStrategy.EPOCH:
            control.should_save = True
        return control


class EarlyStoppingCallback(TrainerCallback, ExportableState):
    """Stops the run when the metric for the best model has not improved for some evaluations.

    The best value so far is that of the last evaluation at which the trainer looked for the best model. Without
    `load_best_model_at_end` the run stops, but the best model is not loaded.

    Args:
        early_stopping_patience: evaluations without improvement before the run stops.
        early_stopping_threshold: by how much the metric must improve to count.
    """

    def __init__(self, early_stopping_patience: int = 1, early_stopping_threshold: float | None = 0.0) -> None:
        self.early_stopping_patience = early_stopping_patience
        self.early_stopping_threshold = early_stopping_threshold
        self.early_stopping_patience_counter = 0  # evaluations without improvement so far

    def check_metric_value(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metric_value: float
    ) -> None:
        """Count an evaluation without improvement, or begin to count anew."""
        best = state.best_metric
        if best is not None:
            gain = metric_value - best if args.greater_is_better else best - metric_value
        if best is None or (gain > 0 and abs(gain) > (self.early_stopping_threshold or 0.0)):
            self.early_stopping_patience_counter = 0
        else:
            self.early_stopping_patience_counter += 1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """Check that there will be something to compare.

        Raises:
            OptionError: no metric for the best model, or no evaluation during training.
        """
        if not args.load_best_model_at_end:
            warn(
                "EarlyStoppingCallback without load_best_model_at_end=True: the run may stop early, and ends with the "
                "last model, not the best one"
            )
        if args.metric_for_best_model is None:
            raise OptionError("EarlyStoppingCallback needs metric_for_best_model, such as 'loss'; it is None")
        if args.eval_strategy == IntervalStrategy.NO:
            raise OptionError("EarlyStoppingCallback needs eval_strategy='steps' or 'epoch'; it is 'no'")
        return None

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """Stop the run if patience is at its end."""
        name = args.metric_for_best_model or "loss"
        name = name if name.startswith("eval_") else f"eval_{name}"
        metrics = kwargs.get("metrics") or {}
        if metrics.get(name) is None:
            warn(f"early stopping does nothing: the evaluation has no {name}, but {', '.join(metrics) or 'no figures'}")
            return None
        self.check_metric_value(args, state, control, metrics[name])
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True
        return None

    def state(self) -> dict[str, Any]:
        """Patience and threshold, and the evaluations without improvement so far."""
        return {
            "args": {
                "early_stopping_patience": self.early_stopping_patience,
                "early_stopping_threshold": self.early_stopping_threshold,
            },
            "attributes": {"early_stopping_patience_counter": self.early_stopping_patience_counter},
        }
