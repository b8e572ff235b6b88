"""Calls the callbacks of a run in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from gptrio.errors import InputError, warn
from gptrio.training.callbacks import DefaultFlowCallback, TrainerCallback
from gptrio.training.state import TrainerControl, TrainerState

if TYPE_CHECKING:
    from gptrio.training.arguments import TrainingArguments


def _event(name: str, *unset: str, payload: str | None = None) -> Callable[..., TrainerControl]:
    """A method that calls an event of every callback, after it has unset switches of the control.

    Args:
        name: of the event.
        unset: the switches whose request the event answers.
        payload: name by which callbacks get the method's fourth argument.
    """

    def method(
        self: CallbackHandler,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *given: Any,
        **kwargs: Any,
    ) -> TrainerControl:
        for switch in unset:
            setattr(control, switch, False)
        if payload is not None:
            kwargs.setdefault(payload, given[0] if given else None)
        return self.call_event(name, args, state, control, **kwargs)

    method.__name__, method.__doc__ = name, getattr(TrainerCallback, name).__doc__
    return method


class CallbackHandler(TrainerCallback):
    """Calls callbacks in order.

    Args:
        callbacks: objects or classes.
        model: handed to every callback, as are the next three.
        processing_class: tokenizer.
        optimizer: see `Trainer`.
        lr_scheduler: see `Trainer`.
    """

    def __init__(
        self, callbacks: Iterable[Any], model: Any, processing_class: Any, optimizer: Any, lr_scheduler: Any
    ) -> None:
        self.callbacks: list[TrainerCallback] = []
        for callback in callbacks:
            self.add_callback(callback)
        self.model = model
        self.processing_class = processing_class
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.train_dataloader: Any = None
        self.eval_dataloader: Any = None
        if not any(isinstance(callback, DefaultFlowCallback) for callback in self.callbacks):
            warn(
                "without a DefaultFlowCallback nothing is logged, evaluated or saved, and training does not end at "
                f"max_steps; add it to the callbacks, which are {self._names()}"
            )

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Add a callback, or a new one of a class, at the end."""
        added = callback() if isinstance(callback, type) else callback
        if type(added) in map(type, self.callbacks):
            warn(f"there is a {type(added).__name__} already, and now a second one; the callbacks are {self._names()}")
        self.callbacks.append(added)

    def pop_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> TrainerCallback | None:
        """Remove and return a callback, or the first one of a class; None if there is none."""
        for known in self.callbacks:
            if isinstance(known, callback) if isinstance(callback, type) else known == callback:
                self.callbacks.remove(known)
                return known
        return None

    def remove_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Remove a callback, or the first one of a class, if there is one.

        Raises:
            InputError: an object that is not among the callbacks.
        """
        if self.pop_callback(callback) is None and not isinstance(callback, type):
            raise InputError(f"{type(callback).__name__} is not among the callbacks, which are {self._names()}")

    @property
    def callback_list(self) -> str:
        """Names of the callbacks' classes, one a line."""
        return "\n".join(type(callback).__name__ for callback in self.callbacks)

    def _names(self) -> str:
        return ", ".join(self.callback_list.split()) or "none"

    def call_event(
        self, event: str, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Call the method of an event of every callback, in order, and return the last control that one returned."""
        for callback in self.callbacks:
            result = getattr(callback, event)(
                args,
                state,
                control,
                model=self.model,
                processing_class=self.processing_class,
                optimizer=self.optimizer,
                lr_scheduler=self.lr_scheduler,
                train_dataloader=self.train_dataloader,
                eval_dataloader=self.eval_dataloader,
                **kwargs,
            )
            control = control if result is None else result
        return control

    on_init_end = _event("on_init_end")
    on_train_begin = _event("on_train_begin", "should_training_stop")
    on_train_end = _event("on_train_end")
    on_epoch_begin = _event("on_epoch_begin", "should_epoch_stop")
    on_epoch_end = _event("on_epoch_end")
    on_step_begin = _event("on_step_begin", "should_log", "should_evaluate", "should_save")
    on_pre_optimizer_step = _event("on_pre_optimizer_step")
    on_optimizer_step = _event("on_optimizer_step")
    on_substep_end = _event("on_substep_end")
    on_step_end = _event("on_step_end")
    on_evaluate = _event("on_evaluate", "should_evaluate", payload="metrics")
    on_predict = _event("on_predict", payload="metrics")
    on_save = _event("on_save", "should_save")
    on_log = _event("on_log", "should_log", payload="logs")
    on_prediction_step = _event("on_prediction_step")
