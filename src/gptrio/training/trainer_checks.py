"""What `Trainer` refuses at its construction, with the way out."""

from __future__ import annotations

import inspect
import re
from typing import Any

from gptrio.errors import InputError, OptionError, UnsupportedError, warn
from gptrio.training import ranks
from gptrio.training.enums import IntervalStrategy, SaveStrategy
from gptrio.training.loaders import is_divided
from gptrio.training.order import has_length, is_streamed
from gptrio.training.precision import SingleProcess
from gptrio.training.sharding import check_sharding

_WITHOUT_HEAD = re.compile(r"(GPT2|GPTNeo|GPTNeoX)Model")


def check_trainer(trainer: Any, has_model: bool) -> None:
    """Check the arguments of a trainer against each other.

    Raises:
        OptionError: two contradict each other, or one that another needs is missing.
        UnsupportedError: an argument that several processes do not follow.
    """
    args = trainer.args
    _check_processes(args)
    if args.fsdp:
        check_sharding(args, trainer)
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


def take_accumulation(args: Any) -> None:
    """Take the number of batches of an update from the settings of accelerate, where they have it.

    Raises:
        OptionError: the arguments have another one.
    """
    given = (args.accelerator_config.gradient_accumulation_kwargs or {}).get("num_steps")
    if given is None:
        return
    if args.gradient_accumulation_steps not in (1, given):
        raise OptionError(
            f"accelerator_config has num_steps={given}, but gradient_accumulation_steps="
            f"{args.gradient_accumulation_steps}; set one of them alone"
        )
    args.gradient_accumulation_steps = given


def _check_processes(args: Any) -> None:
    if args.world_size == 1:
        return
    config = args.accelerator_config
    if args.auto_find_batch_size:
        raise UnsupportedError(
            "auto_find_batch_size=True works in one process alone, as others would wait for the one that is out of "
            "memory; find the size in one process, and pass it as per_device_train_batch_size"
        )
    if config.split_batches:
        raise UnsupportedError(
            "accelerator_config has split_batches=True, but per_device_train_batch_size is always that of one process; "
            f"divide it by {args.world_size}"
        )
    if config.dispatch_batches:
        raise UnsupportedError(
            "accelerator_config has dispatch_batches=True, but every process reads the data; leave it out, and let all "
            "of them read the same rows in the same order"
        )


def check_ranks(trainer: Any, loader: Any) -> None:
    """Check that the processes of a run are about to train the same model on the same data.

    Raises:
        OptionError: something differs between them; the message has the values of each.
    """
    if ranks.world_size() == 1:
        return
    args, dataset = trainer.args, trainer.train_dataset
    names = ("gradient_accumulation_steps", "max_steps", "num_train_epochs", "seed", "data_seed", "learning_rate")
    own = {
        "rows of train_dataset": len(dataset) if has_length(dataset) else None,
        "per_device_train_batch_size": trainer._train_batch_size,
        **{name: getattr(args, name) for name in names},
        "trained values": trainer.get_num_trainable_parameters(),
    }
    of_all = ranks.gathered(own)
    differing = [
        f"{name} is {', '.join(f'{each[name]} on rank {i}' for i, each in enumerate(of_all))}"
        for name in own
        if any(each[name] != own[name] for each in of_all)
    ]
    if differing:
        raise OptionError(
            f"the processes of a run have to agree, but {'; '.join(differing)}; give all of them the same"
        )
    if ranks.is_first() and not is_divided(loader):
        warn(
            "every process trains on all rows of the loader that get_train_dataloader returned; return "
            "self.accelerator.prepare(loader), which divides them"
        )


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


def check_accelerator(accelerator: Any) -> None:
    """Refuse an accelerator of accelerate, whose loaders and wrapped models the training does not use.

    Raises:
        UnsupportedError: it is not the trainer's own.
    """
    if not isinstance(accelerator, SingleProcess):
        kind = f"{type(accelerator).__module__}.{type(accelerator).__name__}"
        raise UnsupportedError(
            f"self.accelerator is {kind}, but the Trainer runs with the one that "
            "super().create_accelerator_and_postprocess() makes; call that, and pass fsdp, bf16 and the like to "
            "TrainingArguments"
        )
