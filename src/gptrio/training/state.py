"""Where a run is, `TrainerState`, and what happens next, `TrainerControl`; the JSON is that of Transformers 4.56."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gptrio.errors import CheckpointFormatError, InputError, warn
from gptrio.hub import read_json, write_text

if TYPE_CHECKING:
    from typing_extensions import Self


class ExportableState:
    """Something whose state is part of a checkpoint, as plain values: callbacks and `TrainerControl`."""

    def state(self) -> dict[str, Any]:
        """`{"args": keyword arguments of the class, "attributes": values that are set afterwards}`."""
        raise NotImplementedError(f"{type(self).__name__}.state() is missing; return its 'args' and 'attributes'")

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Build an object from what `state` returned."""
        instance = cls(**state["args"])
        for name, value in state["attributes"].items():
            setattr(instance, name, value)
        return instance


@dataclass
class TrainerState:
    """Where a run is. One step is one update, whatever the number of batches whose gradients it accumulates.

    Args:
        epoch: epochs done, with the share of the current one; None before training.
        global_step: updates done.
        max_steps: updates of the whole run.
        logging_steps: updates between two logs.
        eval_steps: updates between two evaluations.
        save_steps: updates between two checkpoints.
        train_batch_size: rows per device and batch, as found by `auto_find_batch_size`.
        num_train_epochs: epochs of the whole run.
        num_input_tokens_seen: tokens of all inputs so far, if they are counted.
        total_flos: floating-point operations so far.
        log_history: everything that was logged.
        best_metric: best value of the metric for the best model.
        best_global_step: update after which it was reached.
        best_model_checkpoint: folder that was saved then.
        is_local_process_zero: whether this is the first process of this machine.
        is_world_process_zero: whether this is the first process of all.
        is_hyper_param_search: whether the run is one of a search.
        trial_name: name of the run in a search.
        trial_params: its parameters.
        stateful_callbacks: callbacks whose state is to be saved, or their saved states by name of class.

    Raises:
        InputError: a callback to be saved is no ExportableState.
    """

    epoch: float | None = None
    global_step: int = 0
    max_steps: int = 0
    logging_steps: int = 500
    eval_steps: int = 500
    save_steps: int = 500
    train_batch_size: int | None = None
    num_train_epochs: int = 0
    num_input_tokens_seen: int = 0
    total_flos: float = 0
    log_history: list[dict[str, Any]] = field(default_factory=list)
    best_metric: float | None = None
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True
    is_hyper_param_search: bool = False
    trial_name: str | None = None
    trial_params: dict[str, str | float | int | bool] | None = None
    stateful_callbacks: Any = None

    def __post_init__(self) -> None:
        self.log_history = self.log_history or []  # None is a new list, as in Transformers
        if not isinstance(self.stateful_callbacks, dict):
            self.stateful_callbacks = states_by_class(self.stateful_callbacks or ())

    def save_to_json(self, json_path: str | os.PathLike[str]) -> None:
        """Write the state to a file, which appears whole or not at all."""
        write_text(json_path, json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n")

    @classmethod
    def load_from_json(cls, json_path: str | os.PathLike[str]) -> Self:
        """Read a state that this or Transformers' class wrote.

        Raises:
            CheckpointFormatError: the file is no JSON object.
        """
        content = read_json(json_path, CheckpointFormatError)
        known = {item.name for item in dataclasses.fields(cls)}
        if unknown := sorted(content.keys() - known):
            warn(f"{json_path} has keys of another version, which are ignored: {', '.join(unknown)}")
        return cls(**{name: value for name, value in content.items() if name in known})

    def compute_steps(self, args: Any, max_steps: int) -> None:
        """Set the numbers of updates between logs, evaluations and checkpoints; those below 1 are shares of the run."""
        for kind in ("logging_steps", "eval_steps", "save_steps"):
            steps = getattr(args, kind)
            if steps is not None:
                setattr(self, kind, math.ceil(max_steps * steps) if steps < 1 else steps)

    def init_training_references(self, trainer: Any, max_steps: int, num_train_epochs: int, trial: Any = None) -> None:
        """Set what a run knows at its start."""
        if trial is not None:
            self.trial_name = None if trainer.hp_name is None else trainer.hp_name(trial)
            self.trial_params = getattr(trial, "params", trial)
        self.max_steps = max_steps
        self.num_train_epochs = num_train_epochs
        self.is_local_process_zero = trainer.is_local_process_zero()
        self.is_world_process_zero = trainer.is_world_process_zero()


def states_by_class(callbacks: Iterable[Any]) -> dict[str, Any]:
    """State of each callback by name of its class; a list of them where a class has several."""
    states: dict[str, Any] = {}
    for callback in callbacks:
        if not isinstance(callback, ExportableState):
            kind = type(callback).__name__
            raise InputError(f"the state of callback {kind} cannot be saved; derive the class from ExportableState too")
        name, state = type(callback).__name__, callback.state()
        if name in states:
            states[name] = [*(states[name] if isinstance(states[name], list) else [states[name]]), state]
        else:
            states[name] = state
    return states


@dataclass
class TrainerControl(ExportableState):
    """What the loop is to do next; callbacks set it.

    Args:
        should_training_stop: end the run; stays set.
        should_epoch_stop: end the epoch; unset when the next one begins.
        should_save: save a checkpoint; unset when the next step begins, as are the next two.
        should_evaluate: evaluate.
        should_log: log.
    """

    should_training_stop: bool = False
    should_epoch_stop: bool = False
    should_save: bool = False
    should_evaluate: bool = False
    should_log: bool = False

    def state(self) -> dict[str, Any]:
        """The five switches as keyword arguments."""
        return {"args": dataclasses.asdict(self), "attributes": {}}
