"""The part of `Trainer` that saves and restores: models, checkpoints, the best model."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from gptrio.errors import InputError, OptionError, warn
from gptrio.training import random_states, ranks
from gptrio.training.checkpoint import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from gptrio.training.loaders import sampler_of
from gptrio.training.manifest import MANIFEST, accept_changes, stamps_of, verify_checkpoint, warn_of_changes
from gptrio.training.order import has_length
from gptrio.training.publishing import PublishingMixin
from gptrio.training.saved_state import SavedStateMixin
from gptrio.training.snapshot import Position
from gptrio.training.state import ExportableState, TrainerControl, TrainerState, states_by_class
from gptrio.training.weights import restore_weights, save_weights

_log = logging.getLogger(__name__)
TRAINER_STATE_NAME = "trainer_state.json"


class SavingMixin(SavedStateMixin, PublishingMixin):
    """Files of a run; each method can be overridden."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model, and the tokenizer, so that `from_pretrained` reads them.

        Args:
            output_dir: `args.output_dir` by default.
            _internal_call: not called by the user, who with `push_to_hub` wants it pushed too.
        """
        state_dict = self._whole_state
        if state_dict is None:
            state_dict = self.accelerator.full_state_dict(self.model, keeps=self.args.should_save)
        if self.args.should_save:
            self._save(self.args.output_dir if output_dir is None else output_dir, state_dict=state_dict)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = self.args.output_dir if output_dir is None else output_dir
        os.makedirs(folder, exist_ok=True)
        _log.info(f"saving the model to {folder}")
        save_weights(self.accelerator.unwrap_model(self.model), folder, state_dict, self.args.save_safetensors)
        tokenizer = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Write `checkpoint-STEP`, whole or not at all, and remove older ones beyond the limit."""
        self.store_flos()
        step, run_dir = self.state.global_step, self._get_output_dir(trial)
        if self.state.best_global_step:
            best = os.path.join(run_dir, f"checkpoint-{self.state.best_global_step}")
            if self.state.best_global_step == step or os.path.isdir(best):
                self.state.best_model_checkpoint = best
        self.state.stateful_callbacks.update(states_by_class(self._stateful()))
        # what ranks exchange comes first, so that none waits for one that fails to write
        self._mean_loss = ranks.mean(self._unlogged_loss).cpu()
        self._whole_state = self.accelerator.full_state_dict(self.model, keeps=self.args.should_save)
        try:
            target = self._run_folder.save(step, self._write_checkpoint, self._facts())
        finally:
            self._whole_state = None
        if self.args.should_save and target is not None:
            self._rotate_checkpoints(use_mtime=True, output_dir=run_dir)
        self._written = None if target is None else (target, stamps_of(target))
        if self.args.push_to_hub and target is not None:
            self._push_from_checkpoint(str(target))

    def _accept_changes(self) -> None:
        """Take what overridden methods and callbacks have changed in a checkpoint just written as part of it."""
        folder, before = self._written or (None, {})
        self._written = None
        if folder is None or not self.args.should_save or not (folder / MANIFEST).is_file():
            return
        now = stamps_of(folder)
        changed = {name for name in {*before, *now} - {MANIFEST} if before.get(name) != now.get(name)}
        if changed:
            accept_changes(folder, changed)

    def _rotate_checkpoints(self, use_mtime: bool = False, output_dir: str | None = None) -> None:
        """Remove the oldest checkpoints beyond `save_total_limit`, never the best, and always leave two.

        Args:
            use_mtime: has no effect: checkpoints with higher numbers than that of the run are the oldest.
            output_dir: where they are; `args.output_dir` by default.
        """
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        newest = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        best, limit = self.state.best_model_checkpoint, self.args.save_total_limit
        rotate_checkpoints(folder, limit, best, newest=newest if newest.is_dir() else None)

    def _write_checkpoint(self, folder: Path) -> None:
        """Write every file of a checkpoint but its manifest."""
        self.save_model(str(folder), _internal_call=True)
        if not self.args.save_only_model:
            extra = {
                "loss": self._unlogged_loss.detach().cpu(),
                "mean_loss": self._mean_loss,
                "total_loss": self._total_loss_scalar,
                "last_logged": self._globalstep_last_logged,
                "epoch_random": self._epoch_random,
            }
            self._save_snapshot(folder, extra)
        if self.args.should_save:
            self.state.save_to_json(folder / TRAINER_STATE_NAME)

    def _facts(self) -> dict[str, Any]:
        """What a resumed run has to have in common with this one."""
        args, dataset = self.args, self.train_dataset
        return {
            "train_batch_size": self._train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "rows": len(dataset) if has_length(dataset) else None,
            "seed": args.seed,
            "data_seed": args.data_seed,
        }

    def _stateful(self) -> list[Any]:
        return [each for each in [*self.callback_handler.callbacks, self.control] if isinstance(each, ExportableState)]

    def _get_output_dir(self, trial: Any = None) -> str:
        """Folder of the checkpoints: the output folder, or one in it for a trial of a search."""
        if self.hp_search_backend is None or trial is None:
            return str(self.args.output_dir)
        name = f"run-{trial.number}" if self.hp_name is None else self.hp_name(trial)
        return os.path.join(self.args.output_dir, name)

    def store_flos(self) -> None:
        """Add the operations since the last call to the state."""
        self.state.total_flos += ranks.total(self.current_flos)
        self.current_flos = 0

    # resuming -------------------------------------------------------------------------------------------------------

    def _checkpoint_to_resume(self, resume_from_checkpoint: str | os.PathLike[str] | bool | None) -> str | None:
        """The folder to go on from; a whole one.

        Raises:
            OptionError: the newest is asked for, but there is none.
            CheckpointError: the given one is broken, or missing.
        """
        if resume_from_checkpoint is None or resume_from_checkpoint is False:
            return None
        if resume_from_checkpoint is not True:
            verify_checkpoint(Path(resume_from_checkpoint))
            return os.fspath(resume_from_checkpoint)
        found = self._run_folder.latest()
        if found is None:
            raise OptionError(
                f"there is no checkpoint in {self.args.output_dir} to resume from; train() without "
                "resume_from_checkpoint begins anew"
            )
        return str(found)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Put the weights of a checkpoint into the model."""
        restore_weights(self.accelerator.unwrap_model(self.model if model is None else model), resume_from_checkpoint)

    def _load_state(self, folder: str, loader: Any, updates_per_epoch: int) -> None:
        """Restore the run's state, optimizer, schedule, place in the data and random generators."""
        self.state = TrainerState.load_from_json(Path(folder, TRAINER_STATE_NAME))
        self.compare_trainer_and_checkpoint_args(self.args, self.state)
        self._load_callback_state()
        accumulated = self.args.gradient_accumulation_steps
        epoch, done = divmod(self.state.global_step, updates_per_epoch)
        place = Position(epoch, done * accumulated, self._position.seed, ranks.world_size())
        if Path(folder, MANIFEST).is_file() and ranks.is_first():
            warn_of_changes(Path(folder), {**self._facts(), "world_size": ranks.world_size()})
        position, extra = self._load_snapshot(folder)
        sampler = sampler_of(loader)
        rows = None if sampler is None else len(sampler)
        self._position = (
            place if position is None else position.for_ranks(ranks.world_size(), rows, self._train_batch_size)
        )
        if self.args.ignore_data_skip:
            self._position.index = 0
        self._resumed_random = random_states.gather()
        self._epoch_random = extra.get("epoch_random")
        is_own = position is None or position.world_size == ranks.world_size()
        unlogged: Tensor = extra.get("loss" if is_own else "mean_loss", self._unlogged_loss)
        self._unlogged_loss = unlogged.to(self.args.device)
        self._total_loss_scalar = extra.get("total_loss", 0.0)
        self._globalstep_last_logged = extra.get("last_logged", self.state.global_step)
        if sampler is not None:
            sampler.seed = self._position.seed
        _log.info(f"resuming from {folder}: update {self.state.global_step}, {self._position}")

    def compare_trainer_and_checkpoint_args(self, training_args: Any, trainer_state: TrainerState) -> None:
        """Say which numbers of steps are those of a checkpoint, as they are part of its state, not of the arguments."""
        pairs = [
            (name, getattr(training_args, name), getattr(trainer_state, name))
            for name in ("logging_steps", "eval_steps", "save_steps")
        ]
        differing = [
            f"{name}: {given} (from args) != {saved} (from trainer_state.json)"
            for name, given, saved in pairs
            if given is not None and given >= 1 and saved is not None and given != saved
        ]
        if differing:
            warn(f"the checkpoint goes on with its own {'; '.join(differing)}")

    def _load_callback_state(self) -> None:
        """Give the callbacks the states of the checkpoint, if `restore_callback_states_from_checkpoint` asks for it.

        Those that get one are new objects, which are called after the others, in the order of the file.
        """
        if not self.args.restore_callback_states_from_checkpoint:
            return
        callbacks = self.callback_handler.callbacks
        before, unknown = [*callbacks, self.control], []
        for name, saved in self.state.stateful_callbacks.items():
            present = [each for each in before if type(each).__name__ == name]
            if not present:
                unknown.append(name)
            for callback, state in zip(present, _latest(saved, len(present)), strict=False):
                restored: Any = type(callback).from_state({"args": {}, "attributes": {}, **state})  # type: ignore[attr-defined]  # as it was saved
                if isinstance(callback, TrainerControl):
                    self.control = restored
                else:
                    callbacks[:] = [each for each in callbacks if each is not callback] + [restored]
        if unknown:
            warn(f"the checkpoint has states of callbacks that this run does not have: {', '.join(unknown)}")

    # the best model -------------------------------------------------------------------------------------------------

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any = None) -> bool:
        """Whether an evaluation is the best so far; notes that in the state.

        Raises:
            InputError: the metric to compare is not among the metrics.
        """
        if self.args.metric_for_best_model is None:
            return False
        value = metrics[metric_name(self.args.metric_for_best_model, metrics)]
        best, is_greater = self.state.best_metric, self.args.greater_is_better
        limit = (float("-inf") if is_greater else float("inf")) if best is None else best
        self.state.best_metric = limit
        if not (value > limit if is_greater else value < limit):
            return False
        self.state.best_metric, self.state.best_global_step = value, self.state.global_step
        return True

    def _load_best_model(self) -> None:
        """Put the weights of the best checkpoint into the model."""
        folder = self.state.best_model_checkpoint
        _log.info(f"loading the best model, of {folder} ({self.args.metric_for_best_model} {self.state.best_metric})")
        restore_weights(self.accelerator.unwrap_model(self.model), str(folder))


def metric_name(name: str, metrics: dict[str, float]) -> str:
    """The key of a metric.

    Raises:
        InputError: there is no such metric; the message names those that there are.
    """
    key = name if name.startswith("eval_") else f"eval_{name}"
    if key not in metrics:
        raise InputError(
            f"metric_for_best_model={name!r} is no metric of the evaluation, which has {', '.join(metrics)}; "
            "compute_metrics has to return it"
        )
    return key


def _latest(saved: Any, count: int) -> list[Any]:
    """The states of the callbacks of a class; Transformers appends those of every save to those of the beginning."""
    states = saved if isinstance(saved, list) else [saved]
    return states[-count:] if count and len(states) % count == 0 else states
