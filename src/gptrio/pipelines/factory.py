"""`pipeline`: builds the pipeline of a task from the name of a model, or from a model and its tokenizer."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch

from gptrio.config import AutoConfig, PretrainedConfig
from gptrio.errors import CheckpointNotFoundError, GptrioWarning, OptionError
from gptrio.hub import HubOptions
from gptrio.models.base.adapters import adapted_model
from gptrio.pipelines.base import Pipeline
from gptrio.pipelines.flax_models import flax_arguments, flax_class, framework_of
from gptrio.pipelines.tasks import Task, check_heads, find_task, infer_task
from gptrio.tokenization.auto import AutoTokenizer
from gptrio.utils import logging

_log = logging.get_logger(__name__)


def pipeline(
    task: str | None = None,
    model: Any = None,
    config: str | PretrainedConfig | None = None,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    image_processor: Any = None,
    processor: Any = None,
    framework: str | None = None,
    revision: str | None = None,
    use_fast: bool = True,
    token: str | bool | None = None,
    device: int | str | torch.device | None = None,
    device_map: Any = None,
    dtype: str | torch.dtype | None = "auto",
    trust_remote_code: bool | None = None,
    model_kwargs: dict[str, Any] | None = None,
    pipeline_class: Any = None,
    **kwargs: Any,
) -> Any:
    """Build a pipeline: text in, results out.

    Args:
        task: name of the task; inferred from the model's architecture if there is none.
        model: folder, packaged model, hub id, or a model.
        config: folder, hub id or configuration of the model, in place of the one beside its weights.
        tokenizer: folder, hub id, tokenizer, or a name and a dictionary of arguments; the model's own by default.
        feature_extractor, image_processor, processor: kept as attributes.
        framework: "pt", or "flax" to load a Flax model; by default that of `model`, or "pt" for a name.
        revision: branch, tag or commit of a hub repository.
        use_fast: take the fast tokenizer where there is one.
        token: hub access token.
        device: number or name of the device; the first GPU, or the CPU, by default.
        device_map: places parts of a large model on several devices (see `from_pretrained`).
        dtype: dtype of the weights, or "auto" for that of the checkpoint; also as `torch_dtype`.
        trust_remote_code: accepted; a checkpoint with code is refused with it, as that is never run.
        model_kwargs: further arguments of the model's `from_pretrained`.
        pipeline_class: a class in place of the task's own.
        kwargs: of the pipeline: `batch_size`, and defaults for the arguments of its calls.

    Returns:
        The pipeline.

    Raises:
        UnknownTaskError: there is no such task.
        OptionError: arguments contradict each other, or the model's tokenizer is not known.
        InputError: the model was made for another task.
        UnsupportedError: another framework, or code from a checkpoint.

    Example:
        >>> generator = pipeline("text-generation", "gptrio/stdlib-gpt2")
        >>> text = generator("import os", max_new_tokens=5)[0]["generated_text"]
    """
    framework = framework_of(model, framework)
    hub: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    arguments = _model_arguments(dict(model_kwargs or {}), device, device_map, dtype, kwargs)
    hub |= {name: arguments[name] for name in ("cache_dir", "local_files_only") if name in arguments}
    full, row = (None, None) if task is None else find_task(task)
    if model is None:
        model, default_revision = _default_model(task, row, tokenizer)
        hub["revision"] = revision or default_revision
    model = os.fspath(model) if isinstance(model, os.PathLike) else model
    classes, source = _described(model, config, hub)
    if full is None or row is None:
        full, row = find_task(infer_task(classes, model if isinstance(model, str) else classes[0]))
    check_heads(full, classes, model if isinstance(model, str) else classes[0])
    chosen = pipeline_class or row.pipeline_class()
    if isinstance(model, str):
        model = _load_model(
            row, model, {**arguments, **hub, **({} if config is None else {"config": config})}, framework
        )
    if chosen._load_tokenizer is not False:
        tokenizer = _load_tokenizer(tokenizer, source, use_fast, hub, chosen._load_tokenizer is True)
    given = {
        "tokenizer": tokenizer,
        "feature_extractor": feature_extractor,
        "image_processor": image_processor,
        "processor": processor,
        "device": device,
    }
    kwargs.update({key: value for key, value in given.items() if value is not None})
    built: Pipeline = chosen(model=model, framework=framework, task=task or full, **kwargs)
    return built


def _model_arguments(
    arguments: dict[str, Any], device: Any, device_map: Any, dtype: Any, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of the model's `from_pretrained`; takes `torch_dtype` out of `kwargs`.

    Raises:
        OptionError: `device_map` or a dtype is given twice.
    """
    old_name = kwargs.pop("torch_dtype", None)
    if dtype == "auto" and old_name is not None:
        dtype = old_name
    if device_map is not None:
        if "device_map" in arguments:
            raise OptionError("device_map was given twice, also in model_kwargs; leave out one of them")
        if device is not None:
            _log.warning("device=%r and device_map were both given; leave out one of them", device)
        arguments["device_map"] = device_map
    if "dtype" in arguments or "torch_dtype" in arguments:
        if dtype not in (None, "auto"):
            raise OptionError(f"dtype={dtype!r} was given, and another one in model_kwargs; leave out one of them")
    elif dtype is not None:
        arguments["dtype"] = dtype
    return arguments


def _default_model(task: str | None, row: Task | None, tokenizer: Any) -> tuple[str, str]:
    """Name and revision of the model of a task for which none was named."""
    if row is None:
        raise OptionError("pipeline() needs a task, such as 'text-generation', or a model to infer it from")
    if tokenizer is not None:
        raise OptionError("a tokenizer was given without a model; pass model= too, as the tokenizer must fit it")
    if row.default_model is None:
        raise OptionError(f"task={task!r} has no default model; pass model=, a folder or a hub id")
    _log.warning("no model was given for task=%r; using %s", task, row.default_model)
    return row.default_model, row.default_revision


def _described(model: Any, config: Any, hub: dict[str, Any]) -> tuple[list[str], str | None]:
    """Names of the classes that a model was saved from, or is; and where its tokenizer is, if that is known."""
    if not isinstance(model, str):
        return [base.__name__ for base in type(model).__mro__], config if isinstance(config, str) else None
    if not isinstance(config, PretrainedConfig):
        try:
            config = AutoConfig.from_pretrained(config or model, **hub)
        except CheckpointNotFoundError:
            base = adapted_model(model, HubOptions.pop_from(dict(hub)))
            if base is None:
                raise
            config, model = AutoConfig.from_pretrained(base, **hub), base
    return list(config.architectures or []), model


def _load_model(row: Task, model: str, arguments: dict[str, Any], framework: str) -> Any:
    cls = row.model_class()
    if framework == "flax":
        cls, arguments = flax_class(row.auto_class), flax_arguments(arguments)
    with warnings.catch_warnings():
        if row.auto_class == "AutoModel":  # a backbone leaves out the head's weights
            warnings.filterwarnings("ignore", "[^;]* in the checkpoint but not in the model", GptrioWarning)
        return cls.from_pretrained(model, **arguments)


def _load_tokenizer(tokenizer: Any, source: str | None, use_fast: bool, hub: dict[str, Any], is_needed: bool) -> Any:
    """The tokenizer, loaded unless it is one; None if there is none and it can be done without."""
    if tokenizer is None and source is None:
        if is_needed:
            raise OptionError("the tokenizer of a model that is passed as an object is not known; pass tokenizer= too")
        return None
    if isinstance(tokenizer, tuple):
        tokenizer, own = tokenizer
        return AutoTokenizer.from_pretrained(tokenizer, **{"use_fast": use_fast, **hub, **own})
    tokenizer = source if tokenizer is None else tokenizer
    if isinstance(tokenizer, (str, os.PathLike)):
        return AutoTokenizer.from_pretrained(tokenizer, use_fast=use_fast, **hub)
    return tokenizer
