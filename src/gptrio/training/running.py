"""The part of `Trainer` that runs the training."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gptrio.errors import OptionError
from gptrio.training import ranks
from gptrio.training.arguments_lists import deprecated
from gptrio.training.enums import SaveStrategy
from gptrio.training.interruption import Interruption
from gptrio.training.loaders import sampler_of
from gptrio.training.loop import Plan, TrainingLoop
from gptrio.training.optimizing import OptimizingMixin
from gptrio.training.order import has_length
from gptrio.training.preparing import find_executable_batch_size
from gptrio.training.results import TrainOutput, speed_metrics
from gptrio.training.saving import TRAINER_STATE_NAME, metric_name
from gptrio.training.search import SearchMixin
from gptrio.training.snapshot import Position
from gptrio.training.state import TrainerState
from gptrio.training.trainer_checks import check_ranks
from gptrio.training.trainer_names import NamesMixin
from gptrio.utils.seed import enable_full_determinism, set_seed

_log = logging.getLogger(__name__)


class RunningMixin(OptimizingMixin, SearchMixin, NamesMixin):
    """`train` and what it is made of; each method can be overridden.

    Attributes:
        stop_after_divergence: end the training with a `DivergenceError` after so many updates in a row whose loss or
            gradients are not finite; None only warns of the first. `debug="underflow_overflow"` ends it at the first.
    """

    stop_after_divergence: int | None = None

    def train(
        self,
        resume_from_checkpoint: str | os.PathLike[str] | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
        **kwargs: Any,
    ) -> TrainOutput:
        """Train the model.

        Ctrl-C and SIGTERM finish the update that has begun, save a checkpoint, and then end the process.

        Args:
            resume_from_checkpoint: a checkpoint folder to go on from, or True for the newest whole one.
            trial: one of a search, or parameters for a `model_init` that takes them.
            ignore_keys_for_eval: outputs of the model that are no predictions.
            kwargs: `model_path`, the earlier name of `resume_from_checkpoint`.

        Returns:
            The number of updates, the mean loss of a batch, and figures of speed.

        Raises:
            OptionError: there is no checkpoint to go on from.
            CheckpointError: the checkpoint is broken, or another run writes into the output folder.
        """
        if "model_path" in kwargs:
            deprecated("model_path", "resume_from_checkpoint")
            resume_from_checkpoint = kwargs.pop("model_path")
        if kwargs:
            raise TypeError(f"train() got an unexpected keyword argument {next(iter(kwargs))!r}")
        self._hp_search_setup(trial)
        self.is_in_train = True
        self._train_batch_size = self.args.train_batch_size
        interruption = Interruption()
        try:
            if trial is not None:
                self._renew_model(trial)  # which may choose what its folder is named by
                self._enter_trial_folder(trial)
            with self._run_folder, interruption:
                checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
                if trial is None:
                    self._renew_model(trial)
                if self.neftune_noise_alpha is not None:
                    self.model = self._activate_neftune(self.model)
                self._interruption = interruption
                output = self._train_from(checkpoint, trial, ignore_keys_for_eval)
        finally:
            self.is_in_train = False
            self._memory.abandon()
            if self.neftune_hook_handle is not None:
                self._deactivate_neftune(self.model)
        interruption.end()
        return output

    def _renew_model(self, trial: Any) -> None:
        """Make the model anew if there is a function for that, and give it the tokenizer's special tokens."""
        args = self.args
        if self.model_init is not None:
            enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
            self._set_model(self.call_model_init(trial))
            self.optimizer = self.lr_scheduler = None
        if hasattr(self.processing_class, "pad_token_id") and hasattr(self.model, "config"):
            self._align_special_tokens()
        if self._is_cast_for_evaluation() and not args.do_train and not self.accelerator.is_sharded:
            self._move_model_to_device(self.model, args.device)

    def _train_from(self, checkpoint: str | None, trial: Any, ignored: list[str] | None) -> TrainOutput:
        if checkpoint is not None:
            self._load_from_checkpoint(checkpoint)
            saved = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME)).train_batch_size
            self._train_batch_size = self._train_batch_size if saved is None else saved
        options = {"resume_from_checkpoint": checkpoint, "trial": trial, "ignore_keys_for_eval": ignored}
        run = partial(self._inner_training_loop, args=self.args, **options)
        if not self.args.auto_find_batch_size:
            return run(batch_size=self._train_batch_size)
        output: TrainOutput = find_executable_batch_size(run, self._train_batch_size)
        return output

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: Any = None,
        resume_from_checkpoint: str | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        args = self.args if args is None else args
        self.accelerator.free_memory()
        self._train_batch_size = args.train_batch_size if batch_size is None else batch_size
        self._memory.start("train")
        loader = self.get_train_dataloader()
        check_ranks(self, loader)
        plan = Plan(*self.set_initial_training_values(args, loader, self.get_total_train_batch_size(args)))
        tokens = self._tokens_of(loader, plan) if args.include_tokens_per_second else None
        if self._created_lr_scheduler:  # for another number of updates
            self.lr_scheduler, self._created_lr_scheduler = None, False
        self.accelerator.shard(self.accelerator.unwrap_model(self.model))
        self.create_optimizer_and_scheduler(num_training_steps=plan.max_steps)
        model = self._prepared_model()
        self._begin_run(loader, plan, resume_from_checkpoint)
        start = time.time()
        self.control = self.callback_handler.on_train_begin(args, self.state, self.control)
        if args.eval_on_start:
            self._evaluate(trial, ignore_keys_for_eval, skip_scheduler=True)
        TrainingLoop(self, model, loader, plan, self._interruption, start, ignore_keys_for_eval).run()
        return self._end_run(plan, start, tokens)

    def _prepared_model(self) -> Any:
        """The model, and the optimizer, as the loop calls them."""
        if self.args.gradient_checkpointing:
            options = self.args.gradient_checkpointing_kwargs
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        self.model.train()
        model = self._wrap_model(self.model_wrapped)
        model, self.optimizer = self.accelerator.prepare(model, self.optimizer)
        self.model_wrapped, self._is_prepared = model, True
        return model

    def _begin_run(self, loader: Any, plan: Plan, checkpoint: str | None) -> None:
        """Set the state of the run: a new one, or that of a checkpoint."""
        args = self.args
        self.state = TrainerState(
            stateful_callbacks=self._stateful(),
            train_batch_size=self._train_batch_size,
            is_hyper_param_search=self._trial is not None,
        )
        self.state.compute_steps(args, plan.max_steps)
        self.state.epoch = 0
        sampler = sampler_of(loader)
        self._position = Position(0, 0, args.seed if sampler is None else sampler.seed, ranks.world_size())
        if not ranks.is_first():
            set_seed(args.seed + ranks.rank())  # each rank drops other activations
        self._unlogged_loss = torch.zeros((), device=args.device)
        self._total_loss_scalar, self._globalstep_last_logged = 0.0, 0
        self._resumed_random, self._epoch_random = None, None
        if checkpoint is not None:
            self._load_state(checkpoint, loader, plan.updates_per_epoch)
        else:  # as Transformers does, for subclasses that begin with a state of their own
            self._load_optimizer_and_scheduler(None)
            self._load_scaler(None)
        handler = self.callback_handler
        handler.model, handler.optimizer, handler.lr_scheduler = self.model, self.optimizer, self.lr_scheduler
        handler.train_dataloader = loader
        self.state.init_training_references(self, plan.max_steps, plan.epochs, self._trial)
        self.model_wrapped.zero_grad()
        _log.info(
            f"***** Running training *****: {plan.examples:,} rows, {plan.epochs:,} epochs, {plan.max_steps:,} "
            f"updates of {self.get_total_train_batch_size(args):,} rows, {self.get_num_trainable_parameters():,} "
            "trained values"
        )

    def _end_run(self, plan: Plan, start: float, tokens: float | None) -> TrainOutput:
        """Load the best model, log the figures of the run, and tell the callbacks."""
        args = self.args
        is_whole = self._interruption.agreed is None
        if is_whole and args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        self._total_loss_scalar += ranks.mean(self._unlogged_loss).item()
        loss = self._total_loss_scalar / max(self.state.global_step, 0.001)
        metrics = speed_metrics("train", start, plan.samples, self.state.max_steps, tokens)  # type: ignore[arg-type]  # half epochs
        self.store_flos()
        metrics |= {"total_flos": self.state.total_flos, "train_loss": loss}
        self.is_in_train = False
        self._memory.stop("train", metrics)
        self.log(metrics)
        self.control = self.callback_handler.on_train_end(args, self.state, self.control)
        self._finish_current_push()
        return TrainOutput(self.state.global_step, loss, metrics)

    def _maybe_log_save_evaluate(
        self,
        tr_loss: torch.Tensor,
        grad_norm: Any,
        model: Any,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        """Log, evaluate and save, as far as the control says so; `tr_loss` is set to zero when it is logged."""
        if self.control.should_log and self.state.global_step > self._globalstep_last_logged:
            total = float(self._nested_gather(tr_loss).mean())
            tr_loss -= tr_loss
            logs = {"loss": round(total / (self.state.global_step - self._globalstep_last_logged), 4)}
            if grad_norm is not None:
                logs["grad_norm"] = float(grad_norm)
            logs["learning_rate"] = self._get_learning_rate() if learning_rate is None else learning_rate
            self._total_loss_scalar += total
            self._globalstep_last_logged = self.state.global_step
            self.store_flos()
            self.log(logs, start_time)
        if self.control.should_evaluate:
            is_best = self._determine_best_metric(self._evaluate(trial, ignore_keys_for_eval), trial)
            if self.args.save_strategy == SaveStrategy.BEST:
                self.control.should_save = is_best
        if self.control.should_save:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
            self._accept_changes()

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """Evaluate during training; a schedule that follows a metric takes its step."""
        metrics: dict[str, float] = self.evaluate(ignore_keys=ignore_keys_for_eval)
        if isinstance(self.lr_scheduler, ReduceLROnPlateau) and not skip_scheduler:
            self.lr_scheduler.step(metrics[metric_name(self.args.metric_for_best_model or "loss", metrics)])
        self._report_to_hp_search(trial, self.state.global_step, metrics)
        return metrics

    def get_total_train_batch_size(self, args: Any) -> int:
        """Rows of an update, of all processes."""
        return int(self._train_batch_size * args.gradient_accumulation_steps * args.world_size)

    def set_initial_training_values(
        self, args: Any, dataloader: Any, total_train_batch_size: int
    ) -> tuple[int, int, int, float, bool, int | None, int]:
        """The fields of a `Plan`.

        Args:
            args: `TrainingArguments`.
            dataloader: of the training batches.
            total_train_batch_size: rows of an update.

        Raises:
            OptionError: neither the length of the data nor `max_steps` is known.
        """
        batches = ranks.most([len(dataloader)])[0] if has_length(dataloader) else None
        is_epoch_based = args.max_steps < 0
        if not batches:
            if args.max_steps <= 0:
                raise OptionError(
                    f"the training data has {'no length' if batches is None else 'no whole batch'}, so that max_steps "
                    f"is needed, which is {args.max_steps}"
                )
            rows = args.max_steps * total_train_batch_size
            return sys.maxsize, args.max_steps, rows, rows, is_epoch_based, batches, args.max_steps
        updates = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
        examples = self.num_examples(dataloader)
        if args.max_steps > 0:
            epochs, samples = math.ceil(args.max_steps / updates), args.max_steps * total_train_batch_size
            return epochs, updates, examples, samples, is_epoch_based, batches, args.max_steps
        steps, samples = math.ceil(args.num_train_epochs * updates), examples * args.num_train_epochs
        return math.ceil(args.num_train_epochs), updates, examples, samples, is_epoch_based, batches, steps

    def _tokens_of(self, loader: Any, plan: Plan) -> float:
        """Tokens that the whole run reads."""
        tokens = ranks.total(self.num_tokens(loader, None if plan.is_epoch_based else plan.max_steps))
        is_by_epochs = plan.batches is not None and plan.is_epoch_based
        factor = self.args.num_train_epochs if is_by_epochs else self.args.gradient_accumulation_steps
        return float(tokens * factor)
