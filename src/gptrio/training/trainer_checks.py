"""What `Trainer` refuses at its construction, with the way out."""

from __future__ import annotations

import inspect
import re
from typing import Any

from gptrio.errors import InputError, OptionError, UnsupportedError, warn
from gptrio.training.enums import IntervalStrategy, SaveStrategy
from gptrio.training.order import has_length, is_streamed

_WITHOUT_HEAD = re.compile(r"(GPT2|GPTNeo|GPTNeoX)Model")


def check_trainer(trainer: Any, has_model: bool) -> None:
    """Check the arguments of a trainer against each other.

    Raises:
        OptionError: two contradict each other, or one that another needs is missing.
        UnsupportedError: there are several processes, among which rows and weights would have to be divided.
    """
    args = trainer.args
    if args.world_size > 1 or args.fsdp:
        asked = f"fsdp={args.fsdp}" if args.fsdp else f"world_size={args.world_size}"
        raise UnsupportedError(
            f"Trainer trains in one process, not with {asked}; start it once, without torchrun or fsdp"
        )
    if not has_model and trainer.model_init is None:
        raise OptionError("there is nothing to train; pass Trainer(model=...) or Trainer(model_init=...)")
    if has_model and trainer.model_init is not None:
        warn("model_init makes the model anew when train is called, so that the given model is not trained; pass one")
    if args.eval_strategy != IntervalStrategy.NO and trainer.eval_dataset is None:
        raise OptionError(
            f"eval_strategy={args.eval_strategy.value!r} needs an eval_dataset; pass one, or eval_strategy='no'"
        )
    if (args.save_strategy == SaveStrategy.BEST or args.load_best_model_at_end) and not args.metric_for_best_model:
        raise OptionError("save_strategy='best' and load_best_model_at_end need metric_for_best_model, such as 'loss'")
    has_metrics = args.batch_eval_metrics and trainer.compute_metrics is not None
    if has_metrics and "compute_result" not in inspect.signature(trainer.compute_metrics).parameters:
        raise OptionError(
            "batch_eval_metrics=True calls compute_metrics(predictions, compute_result=...) for every batch, but it "
            "takes no compute_result; add the argument, which is True for the last batch"
        )
    has_optimizer = trainer.optimizer is not None or trainer.lr_scheduler is not None
    if trainer.optimizer is not None and trainer.optimizer_cls_and_kwargs is not None:
        raise OptionError("optimizers and optimizer_cls_and_kwargs both name an optimizer; pass one of them")
    if trainer.model_init is not None and has_optimizer:
        raise OptionError("an optimizer of a model cannot train another, that of model_init; override create_optimizer")
    if not callable(trainer.data_collator):
        raise OptionError(f"data_collator={trainer.data_collator!r:.80} cannot be called with a list of rows")
    _check_data(args, trainer.train_dataset)


def _check_data(args: Any, dataset: Any) -> None:
    if dataset is None:
        return
    if not has_length(dataset) and args.max_steps <= 0:
        raise OptionError("the train_dataset has no length, so that max_steps is needed, which is not set")
    if is_streamed(dataset) and args.group_by_length:
        raise OptionError("group_by_length needs a train_dataset whose rows can be picked; this one can only be read")


def check_model(model: Any) -> None:
    """Refuse a model that cannot be trained.

    Raises:
        InputError: it has no head, or its weights are quantized and no adapter is trained.
    """
    name = type(model).__name__
    if _WITHOUT_HEAD.fullmatch(name):
        raise InputError(
            f"{name} has no head, and so no loss; train one with a head, such as {name[:-5]}ForSequenceClassification, "
            "or that of an AutoModelFor... class"
        )
    has_adapter = getattr(model, "_hf_peft_config_loaded", False) or hasattr(model, "peft_config")
    if getattr(model, "is_quantized", False) and not has_adapter:
        raise InputError(
            f"the weights of this {name} are quantized and cannot be trained; add an adapter to it, or load it without "
            "quantization"
        )
