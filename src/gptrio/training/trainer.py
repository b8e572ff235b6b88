"""`Trainer`: trains, evaluates and saves a model, with the interface of Transformers 4.56."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from typing import Any

import torch

from gptrio.errors import InputError, OptionError, warn
from gptrio.models.base.heads import CausalLMHead, TokenClassificationHead
from gptrio.training import ranks
from gptrio.training.arguments import TrainingArguments
from gptrio.training.arguments_lists import deprecated
from gptrio.training.callback_handler import CallbackHandler
from gptrio.training.callbacks import DefaultFlowCallback
from gptrio.training.collators import DataCollatorWithPadding, default_data_collator
from gptrio.training.computing import (
    accepts_loss_kwargs,
    can_return_loss,
    find_labels,
    forward_options,
    has_forward_of,
    predicts_next_tokens,
)
from gptrio.training.interruption import Interruption
from gptrio.training.losses import LabelSmoother
from gptrio.training.memory_metrics import MemoryMetrics
from gptrio.training.parts import innermost
from gptrio.training.preparing import align_special_tokens
from gptrio.training.processes import make_accelerator
from gptrio.training.progress import PrinterCallback, ProgressCallback
from gptrio.training.reporting import get_reporting_integration_callbacks
from gptrio.training.run_folder import RunFolder
from gptrio.training.running import RunningMixin
from gptrio.training.state import TrainerControl, TrainerState
from gptrio.training.trainer_checks import check_accelerator, check_model, check_trainer, take_accumulation
from gptrio.utils.logging import set_verbosity
from gptrio.utils.seed import enable_full_determinism, set_seed

_log = logging.getLogger(__name__)


class Trainer(RunningMixin):
    """Trains, evaluates and saves a model.

    Every method that is not private can be overridden, and is called where Transformers 4.56 calls it.

    Args:
        model: to be trained; any module that returns its loss.
        args: `TrainingArguments`; by default those of the output folder "tmp_trainer".
        data_collator: makes a batch of rows; by default one that pads with the tokenizer, or stacks.
        train_dataset: rows of `datasets`, of torch, or a list; without a length, `args.max_steps` is needed.
        eval_dataset: likewise, or a dictionary of several by name.
        processing_class: tokenizer; its special tokens are given to the model, and it is saved beside it.
        model_init: makes the model, anew whenever `train` is called.
        compute_loss_func: the loss of outputs, labels and `num_items_in_batch`.
        compute_metrics: metrics by name of an `EvalPrediction`.
        callbacks: objects or classes, besides the usual ones.
        optimizers: the optimizer and the schedule; None where the arguments choose.
        optimizer_cls_and_kwargs: a class of optimizers and its arguments.
        preprocess_logits_for_metrics: what is kept of the logits (and labels) of a batch.
        tokenizer: earlier name of `processing_class`.

    Raises:
        OptionError: arguments that contradict each other.
        InputError: a model without a head, which has no loss.
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., Any] | None = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[..., dict[str, Any]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Any, Any], Any] | None = None,
        *,
        tokenizer: Any = None,
    ) -> None:
        self.args = args = TrainingArguments(output_dir="tmp_trainer") if args is None else args
        self._memory = MemoryMetrics(not args.skip_memory_metrics)
        self._memory.start("init")
        if tokenizer is not None:
            if processing_class is not None:
                raise OptionError("tokenizer is the earlier name of processing_class; pass the latter alone")
            deprecated("tokenizer", "processing_class")
            processing_class = tokenizer
        self.processing_class = processing_class
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.compute_loss_func, self.compute_metrics = compute_loss_func, compute_metrics
        self.preprocess_logits_for_metrics = preprocess_logits_for_metrics
        self.optimizer, self.lr_scheduler = optimizers
        self.optimizer_cls_and_kwargs = optimizer_cls_and_kwargs
        self.model_init = model_init
        padding = DataCollatorWithPadding(processing_class) if hasattr(processing_class, "pad") else None
        self.data_collator = data_collator or padding or default_data_collator
        take_accumulation(args)
        check_trainer(self, has_model=model is not None)
        enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)  # before a model is made
        if args.log_level != "passive" or not args.should_log:
            set_verbosity(args.get_process_log_level())
        self.model, self.is_in_train = model, False
        self.create_accelerator_and_postprocess()
        args.output_dir = ranks.from_first(args.output_dir)  # one named by the time differs from rank to rank
        self._set_model(self.call_model_init() if model is None else model)
        self._begin(callbacks or [])
        self._memory.stop("init")

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator, before the model is placed; a search does it for each trial."""
        self.accelerator = make_accelerator(self.args)
        self.gather_function = self.accelerator.gather_for_metrics

    def _set_model(self, model: Any) -> None:
        """Move a model to the device and note what its forward takes."""
        check_model(model)
        check_accelerator(self.accelerator)
        self.model = self.model_wrapped = model
        is_placed = self.place_model_on_device and not self.accelerator.is_sharded  # which moves part after part
        if is_placed and not (self._is_cast_for_evaluation() and not self.args.do_train):
            self._move_model_to_device(model, self.args.device)
        inner = self.accelerator.unwrap_model(model)
        self.model_accepts_loss_kwargs = accepts_loss_kwargs(inner)
        self._predicts_next_tokens = predicts_next_tokens(inner)
        self._forward_options = forward_options(inner)
        self._has_own_loss = has_forward_of(inner, CausalLMHead)
        self._omits_logits = has_forward_of(inner, CausalLMHead, TokenClassificationHead)
        self._signature_columns = None
        self._is_prepared = False

    def _begin(self, callbacks: list[Any]) -> None:
        """Set what changes in a run to its beginning, and tell the callbacks."""
        args = self.args
        self.callback_handler = CallbackHandler(
            [DefaultFlowCallback, *get_reporting_integration_callbacks(args.report_to), *callbacks],
            self.model,
            self.processing_class,
            self.optimizer,
            self.lr_scheduler,
        )
        self.add_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
        self.hub_model_id = None
        if args.push_to_hub:
            self.init_hf_repo()
        self._run_folder = RunFolder(args.output_dir, args.should_save)
        if args.should_save:
            os.makedirs(args.output_dir, exist_ok=True)
        self.label_smoother = self._make_label_smoother()
        self.control = TrainerControl()
        self.state = TrainerState(
            is_local_process_zero=self.is_local_process_zero(),
            is_world_process_zero=self.is_world_process_zero(),
            stateful_callbacks=self._stateful(),
        )
        self.is_in_train = self._created_lr_scheduler = self._is_silent = False
        self.current_flos = self._batch_weight = 0.0
        self.current_gradient_accumulation_steps = args.gradient_accumulation_steps
        model_class = type(innermost(self.model))
        self.label_names = find_labels(model_class) if args.label_names is None else args.label_names
        self.can_return_loss = can_return_loss(model_class)
        self._train_batch_size, self._whole_state = args.train_batch_size, None
        self.neftune_noise_alpha, self.neftune_hook_handle = args.neftune_noise_alpha, None
        self._written, self._trial = None, None
        self._interruption = Interruption()  # in case that the loop is run without `train`
        self.control = self.callback_handler.on_init_end(args, self.state, self.control)

    def _make_label_smoother(self) -> LabelSmoother | None:
        epsilon = self.args.label_smoothing_factor
        if (
            epsilon
            and getattr(getattr(self.model, "config", None), "problem_type", None) == "multi_label_classification"
        ):
            warn("label_smoothing_factor has no effect, as the model classifies by several labels at once")
            return None
        return LabelSmoother(epsilon) if epsilon else None

    @property
    def tokenizer(self) -> Any:
        """Earlier name of `processing_class`."""
        deprecated("tokenizer", "processing_class")
        return self.processing_class

    @tokenizer.setter
    def tokenizer(self, processing_class: Any) -> None:
        deprecated("tokenizer", "processing_class")
        self.processing_class = processing_class

    @property
    def place_model_on_device(self) -> bool:
        """Whether the trainer moves the model to the device."""
        return bool(self.args.place_model_on_device) and getattr(self.model, "hf_device_map", None) is None

    def add_callback(self, callback: Any) -> None:
        """Add a callback, or a new one of a class."""
        self.callback_handler.add_callback(callback)

    def pop_callback(self, callback: Any) -> Any:
        """Remove and return a callback, or the first of a class; None if there is none."""
        return self.callback_handler.pop_callback(callback)

    def remove_callback(self, callback: Any) -> None:
        """Remove a callback, or the first of a class."""
        self.callback_handler.remove_callback(callback)

    def call_model_init(self, trial: Any = None) -> Any:
        """The model that `model_init` makes; it may take the parameters of a trial.

        Raises:
            InputError: it made none.
        """
        takes = len(inspect.signature(self.model_init).parameters) if self.model_init is not None else 0
        model = None if self.model_init is None else self.model_init(*([trial] if takes else []))
        if model is None:
            raise InputError("model_init returned None; it has to return a model")
        return model

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        """The model in its compiled form, if `torch_compile` asks for it."""
        if not self.args.torch_compile or not training or model is not self.accelerator.unwrap_model(model):
            return model
        return torch.compile(model, backend=self.args.torch_compile_backend, mode=self.args.torch_compile_mode)

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if getattr(model, "quantization_method", None) is None:  # layers of bitsandbytes are where they are
            model.to(device)

    def _is_cast_for_evaluation(self) -> bool:
        return bool(self.args.fp16_full_eval or self.args.bf16_full_eval)

    def _align_special_tokens(self) -> None:
        """Give the model the tokenizer's special tokens."""
        align_special_tokens(self.model, self.processing_class)
