"""What happens to training arguments on construction: aliases, enumerations, values that follow from others, checks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptrio.errors import OptionError, UnknownNameError
from gptrio.training.accelerator_config import AcceleratorConfig
from gptrio.training.arguments_fields import NUMBERS
from gptrio.training.arguments_fsdp import check_fsdp
from gptrio.training.arguments_lists import ALIASES, deprecated, is_given, known_optimizer, refuse, say_no_effect
from gptrio.training.arguments_precision import check_precision
from gptrio.training.enums import (
    DebugOption,
    EvaluationStrategy,
    HubStrategy,
    IntervalStrategy,
    OptimizerNames,
    SaveStrategy,
    SchedulerType,
)
from gptrio.training.reporting import resolve_reporters
from gptrio.utils import logging
from gptrio.utils.choices import ExplicitEnum

if TYPE_CHECKING:
    from gptrio.training.arguments import TrainingArguments

_CHOICES: dict[str, type[ExplicitEnum]] = {
    "eval_strategy": IntervalStrategy,
    "logging_strategy": IntervalStrategy,
    "save_strategy": SaveStrategy,
    "hub_strategy": HubStrategy,
    "lr_scheduler_type": SchedulerType,
}


def check_arguments(args: TrainingArguments) -> None:
    """Bring new arguments into the form in which a trainer reads them.

    Raises:
        UnsupportedError: an argument that is refused.
        OptionError: an impossible value, or two that contradict each other.
    """
    refuse(args)
    _read_texts(args)
    _apply_aliases(args)
    say_no_effect(args)
    _set_folders(args)
    _set_choices(args)
    _check_counts(args)
    _set_steps(args)
    _check_best_model(args)
    _check_schedule(args)
    check_fsdp(args)
    _set_of_process(args)
    args.report_to = resolve_reporters(args.report_to)
    check_precision(args)


def _read_texts(args: TrainingArguments) -> None:
    """Numbers and JSON objects that a command line or a YAML file gave as text."""
    for name in args._VALID_DICT_FIELDS:
        value = getattr(args, name)
        if isinstance(value, str) and value.startswith("{"):
            try:
                setattr(args, name, _typed(json.loads(value)))
            except json.JSONDecodeError as error:
                raise OptionError(f"{name}={value!r} is not valid JSON: {error}") from error
    for name, number in NUMBERS.items():
        value = getattr(args, name)
        if isinstance(value, str):
            try:
                setattr(args, name, number(value))
            except ValueError as error:
                raise OptionError(f"{name}={value!r} is not a number") from error


def _typed(value: Any) -> Any:
    """Texts within a JSON object that are booleans or numbers, as such."""
    if isinstance(value, dict):
        return {name: _typed(item) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value.isdigit():
        return int(value)
    return float(value) if value.replace(".", "", 1).isdigit() else value


def _apply_aliases(args: TrainingArguments) -> None:
    """Put deprecated arguments where they belong; `train_batch_size` and `check_fsdp` read the others themselves."""
    for name, instead in ALIASES.items():
        if is_given(args, name):
            deprecated(name, instead)
    args.use_cpu = args.use_cpu or args.no_cuda
    if args.include_inputs_for_metrics and "inputs" not in args.include_for_metrics:
        args.include_for_metrics = [*args.include_for_metrics, "inputs"]
    if args.adafactor:
        args.optim = OptimizerNames.ADAFACTOR
    if args.fp16_backend != "auto":
        args.half_precision_backend = args.fp16_backend
    if args.push_to_hub_token is not None:
        args.hub_token = args.push_to_hub_token
    if args.push_to_hub_model_id is not None or args.push_to_hub_organization is not None:
        name = args.push_to_hub_model_id or Path(args.output_dir or "trainer_output").name
        owner = args.push_to_hub_organization
        args.hub_model_id = name if owner is None else f"{owner}/{name}"
    if args.torchdynamo is not None:
        args.torch_compile_backend = args.torchdynamo


def _set_folders(args: TrainingArguments) -> None:
    args.output_dir = os.path.expanduser("trainer_output" if args.output_dir is None else args.output_dir)
    if args.logging_dir is None:
        args.logging_dir = os.path.join(args.output_dir, default_logdir())
    args.logging_dir = os.path.expanduser(args.logging_dir)


def default_logdir() -> str:
    """Folder of logs, named by time and machine as torch does."""
    import socket
    from datetime import datetime

    return os.path.join("runs", f"{datetime.now():%b%d_%H-%M-%S}_{socket.gethostname()}")


def _set_choices(args: TrainingArguments) -> None:
    """Members of enumerations for their values."""
    if isinstance(args.eval_strategy, EvaluationStrategy):
        deprecated("EvaluationStrategy", "IntervalStrategy")
        args.eval_strategy = args.eval_strategy.value
    for name, kind in _CHOICES.items():
        try:
            setattr(args, name, kind(getattr(args, name)))
        except UnknownNameError as error:
            raise UnknownNameError(f"{name}: {error}") from None
    args.optim = known_optimizer(args.optim)
    if isinstance(args.debug, str):
        args.debug = [DebugOption(name) for name in args.debug.split()]
    args.debug = list(args.debug or ())
    if DebugOption.TPU_METRICS_DEBUG in args.debug:
        raise OptionError("debug='tpu_metrics_debug' is for TPUs, which are used through JAX; leave it out")
    args.do_eval = args.do_eval or args.eval_strategy != IntervalStrategy.NO


def _check_counts(args: TrainingArguments) -> None:
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise OptionError(f"{name}={getattr(args, name)} is out of range; expected at least 1")
    every = args.torch_empty_cache_steps
    if every is not None and not (isinstance(every, int) and every > 0):
        raise OptionError(f"torch_empty_cache_steps={every!r} is out of range; expected a positive integer or None")
    if args.dataloader_num_workers == 0 and args.dataloader_prefetch_factor is not None:
        raise OptionError(
            f"dataloader_prefetch_factor={args.dataloader_prefetch_factor} needs processes that load data; set "
            "dataloader_num_workers above 0, or leave it out"
        )


def _set_steps(args: TrainingArguments) -> None:
    """Numbers of updates between logs, evaluations and checkpoints: whole ones above 1."""
    is_evaluated = args.eval_strategy == IntervalStrategy.STEPS
    if is_evaluated and not args.eval_steps:
        if args.logging_steps <= 0:
            raise OptionError("eval_strategy='steps' needs eval_steps or logging_steps; both are 0 or None")
        args.eval_steps = args.logging_steps
    if args.logging_strategy == IntervalStrategy.STEPS and args.logging_steps == 0:
        raise OptionError("logging_strategy='steps' needs logging_steps; it is 0. To log nothing, use 'no'")
    strategies = {"logging": args.logging_strategy, "eval": args.eval_strategy, "save": args.save_strategy}
    for kind, strategy in strategies.items():
        steps = getattr(args, f"{kind}_steps")
        if strategy == "steps" and steps > 1:
            if steps != int(steps):
                raise OptionError(f"{kind}_steps={steps} is not whole; expected an integer, or a share below 1")
            setattr(args, f"{kind}_steps", int(steps))


def _check_best_model(args: TrainingArguments) -> None:
    """The best model can be loaded only if it was saved, so that checkpoints are to be made at evaluations."""
    if args.load_best_model_at_end and args.save_strategy != SaveStrategy.BEST:
        saving = SaveStrategy(args.save_strategy).value
        evaluating = IntervalStrategy(args.eval_strategy).value
        if saving != evaluating:
            raise OptionError(
                f"load_best_model_at_end=True needs checkpoints at evaluations, but eval_strategy={evaluating!r} and "
                f"save_strategy={saving!r}; set them to the same, or save_strategy='best'"
            )
        if evaluating == "steps" and not _is_multiple(args.save_steps, args.eval_steps or 0):
            raise OptionError(
                f"load_best_model_at_end=True needs save_steps={args.save_steps} to be a multiple of "
                f"eval_steps={args.eval_steps}, both as numbers of updates or both as shares"
            )
    is_measured = args.load_best_model_at_end or args.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU
    if is_measured and args.metric_for_best_model is None:
        args.metric_for_best_model = "loss"
    if args.greater_is_better is None and args.metric_for_best_model is not None:
        args.greater_is_better = not args.metric_for_best_model.endswith("loss")


def _is_multiple(steps: float, unit: float) -> bool:
    if (steps < 1) != (unit < 1):
        return steps % unit == 0
    scale = 1_000_000 if unit < 1 else 1  # shares of a run are seldom exact in binary
    return steps % unit == 0 or (steps * scale) % (unit * scale) == 0


def _check_schedule(args: TrainingArguments) -> None:
    if args.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU and args.eval_strategy == IntervalStrategy.NO:
        raise OptionError("lr_scheduler_type='reduce_lr_on_plateau' needs evaluations; set eval_strategy")
    if not 0 <= args.warmup_ratio <= 1:
        raise OptionError(f"warmup_ratio={args.warmup_ratio} is out of range; expected 0 to 1")
    if not isinstance(args.warmup_steps, int) or args.warmup_steps < 0:
        raise OptionError(f"warmup_steps={args.warmup_steps!r} is out of range; expected 0 or a positive integer")


def _set_of_process(args: TrainingArguments) -> None:
    """What follows from the number of processes and from the machine."""
    if args.disable_tqdm is None:
        args.disable_tqdm = logging.get_verbosity() > logging.WARNING
    args.accelerator_config = _accelerator_config(args.accelerator_config)
    args.local_rank = args.local_process_index
    args.average_tokens_across_devices = args.average_tokens_across_devices and args.world_size > 1
    by_launcher = os.environ.get("ACCELERATE_MIXED_PRECISION")  # of `accelerate launch --mixed_precision bf16`
    if by_launcher in ("bf16", "fp16") and not (args.bf16 or args.fp16):
        setattr(args, by_launcher, True)
    if args.use_cpu:
        args.dataloader_pin_memory = False


def _accelerator_config(value: Any) -> Any:
    if isinstance(value, type):
        raise OptionError(f"accelerator_config={value!r} is a class; pass an object of it, a dictionary or a JSON file")
    if isinstance(value, (str, os.PathLike)):
        value = AcceleratorConfig.from_json_file(value)
    elif value is None or isinstance(value, dict):
        value = AcceleratorConfig.from_dict(value or {})
    value.pop("use_configured_state")  # accelerate's state is one for all in any case
    return value
