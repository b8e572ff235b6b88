"""The loop of training: epochs, updates of several batches, clipping, the optimizer's step, the schedule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gptrio.errors import warn
from gptrio.training import random_states, ranks
from gptrio.training.divergence import DivergenceWatch
from gptrio.training.enums import DebugOption, SaveStrategy
from gptrio.training.interruption import Interruption
from gptrio.training.loaders import batches_from, sampler_of, set_epoch
from gptrio.training.losses import batch_weights
from gptrio.training.order import has_length, rank_rows
from gptrio.training.snapshot import Position

_SWITCHES = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")


@dataclass
class Plan:
    """How long a run is; the fields are those of `Trainer.set_initial_training_values`.

    Attributes:
        epochs: begun at least.
        updates_per_epoch: the last one may have fewer batches.
        examples: rows of the data set.
        samples: rows of all epochs.
        is_epoch_based: whether the number of epochs is given, rather than that of updates.
        batches: of an epoch; None if that is unknown.
        max_steps: updates in all.
    """

    epochs: int
    updates_per_epoch: int
    examples: int
    samples: float
    is_epoch_based: bool
    batches: int | None
    max_steps: int


class TrainingLoop:
    """One run over the epochs that are left.

    Args:
        trainer: `Trainer`, whose methods and callbacks are called.
        model: as it is called, maybe wrapped.
        loader: of the training batches.
        plan: how long the run is.
        interruption: tells of a signal.
        start_time: of the run, for the speed in the log.
        ignore_keys_for_eval: see `Trainer.train`.
    """

    def __init__(
        self,
        trainer: Any,
        model: Any,
        loader: Any,
        plan: Plan,
        interruption: Interruption,
        start_time: float,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> None:
        self.trainer, self.model, self.loader, self.plan = trainer, model, loader, plan
        self.interruption, self.start_time = interruption, start_time
        self.ignored = ignore_keys_for_eval
        self.grad_norm: Any = None
        self.learning_rate: float | None = None
        is_strict = DebugOption.UNDERFLOW_OVERFLOW in trainer.args.debug
        self.watch = DivergenceWatch(1 if is_strict else trainer.stop_after_divergence)
        self._fewest = 0  # batches that every rank has in an epoch, if it is known
        if sampler_of(loader) is not None and has_length(loader):
            self._fewest = -ranks.most([-len(loader)])[0]

    def run(self) -> None:
        """Train until the last epoch ends, a callback stops the run, or a signal comes."""
        for epoch in range(self.trainer._position.epoch, self.plan.epochs):
            self._run_epoch(epoch)
            if self.trainer.control.should_training_stop or self.interruption.agreed is not None:
                break

    def _run_epoch(self, epoch: int) -> None:
        trainer, args = self.trainer, self.trainer.args
        total = self.plan.batches
        if total is None:
            total = args.max_steps * args.gradient_accumulation_steps
        set_epoch(self.loader, epoch)
        trainer.control = trainer.callback_handler.on_epoch_begin(args, trainer.state, trainer.control)
        done = trainer._position.index
        batches = self._batches(done)
        while done < total and not self._has_stopped():
            wanted = min(args.gradient_accumulation_steps, total - done)  # which callbacks may change
            group, items = trainer.get_batch_samples(batches, wanted, args.device)
            group, repeated = self._as_many_as_others(group, is_known=done + wanted <= self._fewest)
            if not group:
                break
            done += len(group)
            self._update(group, items, self._place(epoch, done), total, repeated)
        if self.interruption.agreed is not None:
            return
        if done == 0:
            warn(
                f"the training data had no batch in epoch {epoch}, so training stops at update "
                f"{trainer.state.global_step} of {self.plan.max_steps}"
            )
            trainer.control.should_training_stop = True
        if done >= total or not trainer.control.should_training_stop:
            trainer._position = self._place(epoch + 1, 0)
        trainer.control = trainer.callback_handler.on_epoch_end(args, trainer.state, trainer.control)
        self._agree()
        self._log_save_evaluate(epoch)

    def _place(self, epoch: int, index: int) -> Position:
        return Position(epoch, index, self.trainer._position.seed, ranks.world_size())

    def _batches(self, done: int) -> Iterator[Any]:
        """The batches of the epoch that are left; on resuming, the random generators then go on as they did."""
        trainer = self.trainer
        is_known = sampler_of(self.loader) is not None
        if done and not is_known and trainer._epoch_random is not None:
            random_states.restore(trainer._epoch_random)  # for the order that another's sampler draws
        trainer._epoch_random = None if is_known else random_states.gather()
        batches = batches_from(self.loader, done)
        if trainer._resumed_random is not None:
            random_states.restore(trainer._resumed_random)
            trainer._resumed_random = None
        return batches

    def _has_stopped(self) -> bool:
        control = self.trainer.control
        is_asked = control.should_epoch_stop or control.should_training_stop
        return is_asked or self.interruption.agreed is not None

    def _as_many_as_others(self, group: list[Any], is_known: bool) -> tuple[list[Any], int]:
        """The batches of an update, filled up with another rank's where others have more; and how many those are.

        Args:
            group: this rank's batches.
            is_known: all ranks have as many as they were asked for.
        """
        if is_known or ranks.world_size() == 1:
            return group, 0
        longest, missing = ranks.most([len(group), -len(group)])
        repeated = longest - len(group)
        if longest + missing == 0:
            return group, 0
        last = ranks.gathered(group[-1] if group else None)  # the same after a resume, as dropout draws by its shape
        return group + [next(batch for batch in last if batch is not None)] * repeated, repeated

    def _agree(self) -> None:
        """Let every rank know of a signal that came to one, and of what the callbacks of one ask for."""
        control = self.trainer.control
        asked = [int(getattr(control, name)) for name in _SWITCHES]
        number, *switches = ranks.most([self.interruption.signal or 0, *asked])
        self.interruption.agreed = number or None
        for name, is_on in zip(_SWITCHES, switches, strict=True):
            setattr(control, name, bool(is_on))

    def _weights(self, group: list[Any], items: Tensor | None, repeated: int) -> list[float]:
        """The share of each batch in the loss; if the loss is divided by a count anyway, only whether it has one."""
        trainer = self.trainer
        if repeated and items is not None:
            return [1.0] * (len(group) - repeated) + [0.0] * repeated
        is_over_ranks = items is None and trainer.args.average_tokens_across_devices
        return batch_weights(group, trainer._predicts_next_tokens, repeated, is_over_ranks)

    def _update(self, group: list[Any], items: Tensor | None, place: Position, total: int, repeated: int) -> None:
        """Compute the gradients of a group of batches, take the optimizer's step, and do what the callbacks ask for."""
        trainer, args, handler = self.trainer, self.trainer.args, self.trainer.callback_handler
        trainer.current_gradient_accumulation_steps = len(group)
        weights, loss = self._weights(group, items, repeated), torch.zeros((), device=args.device)
        if repeated and items is not None:
            items = items.clamp(min=1)
        for i, (inputs, weight) in enumerate(zip(group, weights, strict=True)):
            trainer._batch_weight = weight
            trainer._is_silent = (
                ranks.world_size() > 1 and weight == 0 and (items is None or i >= len(group) - repeated)
            )
            if args.include_num_input_tokens_seen:
                trainer._count_tokens(inputs)
            if i == 0:
                trainer.control = handler.on_step_begin(args, trainer.state, trainer.control)
            loss += self._add_gradients(inputs, items, is_last=i == len(group) - 1)
            if i < len(group) - 1:
                trainer.control = handler.on_substep_end(args, trainer.state, trainer.control)
                if trainer.control.should_epoch_stop or trainer.control.should_training_stop:
                    return
        self._step(group, loss, place)
        trainer.state.global_step += 1
        trainer.state.epoch = place.epoch + place.index / total
        trainer._position = place
        trainer.control = handler.on_step_end(args, trainer.state, trainer.control)
        self._agree()
        if self.interruption.agreed is not None:
            trainer.control.should_save = args.save_strategy != SaveStrategy.NO
        self._log_save_evaluate(place.epoch)

    def _add_gradients(self, inputs: Any, items: Tensor | None, is_last: bool) -> Tensor:
        """Compute the loss of a batch and its gradients, and return its part of the update's loss."""
        trainer, args, accelerator = self.trainer, self.trainer.args, self.trainer.accelerator
        accelerator.sync_gradients = is_last
        inputs = accelerator.place(inputs)
        with nullcontext() if is_last else accelerator.no_sync(self.model):  # ranks sum gradients at the last batch
            loss: Tensor = trainer.training_step(self.model, inputs, items)
        logged = loss
        if args.logging_nan_inf_filter and not torch.isfinite(loss):
            since = trainer.state.global_step - trainer._globalstep_last_logged
            logged = trainer._unlogged_loss / (1 + since)  # the mean of the others
        trainer._unlogged_loss += logged
        if not trainer._is_silent:
            trainer.current_flos += float(trainer.floating_point_ops(inputs))
        return loss

    def _loss_again(self, inputs: Any) -> Tensor:
        """The loss of a batch, for the search of where it is not finite."""
        trainer = self.trainer
        with trainer.compute_loss_context_manager():
            model = trainer.accelerator.unwrap_model(self.model)  # other ranks need not compute theirs
            loss: Tensor = trainer.compute_loss(model, trainer._prepare_inputs(inputs))
        return loss

    def _rows(self, batches: int, place: Position) -> list[int]:
        """Places in the data of the rows of the last batches before a place, if they are known."""
        sampler = sampler_of(self.loader)
        if sampler is None:
            return []
        size = self.loader.batch_size
        order = rank_rows(sampler.order(sampler.seed, place.epoch), size)
        return order[(place.index - batches) * size : place.index * size]

    def _step(self, group: list[Any], loss: Tensor, place: Position) -> None:
        """Clip the gradients, take the optimizer's step and the schedule's, and forget the gradients."""
        trainer, args, handler = self.trainer, self.trainer.args, self.trainer.callback_handler
        accelerator, parameters = trainer.accelerator, self.model.parameters()
        if args.max_grad_norm is not None and args.max_grad_norm > 0:
            self.grad_norm = accelerator.clip_grad_norm_(parameters, args.max_grad_norm, optimizer=trainer.optimizer)
        if getattr(accelerator, "scaler", None) is None:  # which expects gradients that are infinite now and then
            self.watch.observe(
                trainer.state.global_step + 1,
                ranks.mean(loss),
                self.grad_norm,
                model=None if accelerator.is_sharded else accelerator.unwrap_model(self.model),
                batches=group,
                compute_loss=self._loss_again,
                rows=lambda: self._rows(len(group), place),
            )
        trainer.control = handler.on_pre_optimizer_step(args, trainer.state, trainer.control)
        accelerator.step(trainer.optimizer)
        trainer.control = handler.on_optimizer_step(args, trainer.state, trainer.control)
        self.learning_rate = trainer._get_learning_rate()
        is_by_metric = isinstance(trainer.lr_scheduler, ReduceLROnPlateau)  # it steps after an evaluation
        if not accelerator.optimizer_step_was_skipped and not is_by_metric:
            trainer.lr_scheduler.step()
        self.model.zero_grad()

    def _log_save_evaluate(self, epoch: int) -> None:
        self.trainer._maybe_log_save_evaluate(
            self.trainer._unlogged_loss,
            self.grad_norm,
            self.model,
            self.trainer._trial,
            epoch,
            self.ignored,
            self.start_time,
            learning_rate=self.learning_rate,
        )
