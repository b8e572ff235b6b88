"""Loads models: built without storage, then given the tensors of the checkpoint one by one."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gptrio.checkpoint.keys import KeyRules
from gptrio.checkpoint.load import TensorReader, TensorSource, load_into, open_checkpoint
from gptrio.checkpoint.report import LoadReport
from gptrio.checkpoint.torch_files import TensorDict
from gptrio.config import PretrainedConfig
from gptrio.config.arguments import check_constructor_takes, drop_arguments_without_effect
from gptrio.config.reading import pinned, read_config
from gptrio.errors import CheckpointNotFoundError, ConfigError, OptionError
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.options.resolve import as_own_config as as_own_generation_config
from gptrio.hub import HubOptions
from gptrio.models.base.building import build, keep_in_float32
from gptrio.models.base.device_map import DeviceMap, Placement, device_function
from gptrio.models.base.initialization import initialize_missing
from gptrio.models.base.pretrained import PreTrainedModel
from gptrio.quantization import QuantizationConfig, Quantizer, get_quantizer
from gptrio.utils.file_names import FLAX_WEIGHTS_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME

Model = TypeVar("Model", bound=PreTrainedModel)
FROM_FLAX = (FLAX_WEIGHTS_NAME, SAFE_WEIGHTS_NAME)
_MOST_NEW_LAYERS = 1000  # layers that a configuration may have beyond those of its weights


def load_model(
    cls: type[Model],
    name_or_path: str | os.PathLike[str] | None,
    *model_args: Any,
    config: PretrainedConfig | str | os.PathLike[str] | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | str | Mapping[str, torch.dtype | str] | None = None,
    torch_dtype: torch.dtype | str | Mapping[str, torch.dtype | str] | None = None,
    device_map: DeviceMap | None = None,
    attn_implementation: str | None = None,
    use_safetensors: bool | None = None,
    variant: str | None = None,
    ignore_mismatched_sizes: bool = False,
    output_loading_info: bool = False,
    quantization_config: QuantizationConfig | Mapping[str, Any] | str | None = None,
    load_in: str | None = None,
    generation_config: GenerationConfig | None = None,
    key_mapping: Mapping[str, str] | None = None,
    from_flax: bool = False,
    **kwargs: Any,
) -> Model | tuple[Model, dict[str, Any]]:
    """Load a model in evaluation mode.

    Tensors go from the memory-mapped files straight to their device: there is no second copy of the model, and weights
    that the files hold are not initialised at random first.

    Args:
        cls: class of the model.
        name_or_path: folder, packaged name, hub id or a single weight file; None with `config` and `state_dict`.
        model_args: further positional arguments of the class.
        config: configuration, or where to read it; from the folder of the weights if None.
        state_dict: tensors to load instead of files.
        dtype: type of the weights, or "auto" for that of the checkpoint; float32 (torch's default type) if None.
            A dictionary is read at the key "", as none of these models has parts that have types of their own.
        torch_dtype: older name of `dtype`.
        device_map: a device, "auto", or {name of a module: device}.
        attn_implementation: "eager", "sdpa", "flash_attention_2" or a name in `AttentionInterface`.
        use_safetensors: True refuses torch files, False ignores safetensors files.
        variant: middle part of the file names, such as "fp16".
        ignore_mismatched_sizes: initialise tensors of other shapes at random instead of raising.
        output_loading_info: also return a dictionary of missing, unexpected and mismatched keys.
        quantization_config: quantize on load: an `Int8Config`, `Int4Config` or `BitsAndBytesConfig`, its dictionary, or
            its name; as the checkpoint is quantized if None.
        load_in: "int8", "int4", or by bitsandbytes "nf4", "fp4" or "llm_int8", for short.
        generation_config: options of `generate`, instead of those in the folder of the weights.
        key_mapping: {regular expression: replacement}; the first that is found in a checkpoint's key renames it.
        from_flax: read `flax_model.msgpack`, or else safetensors, written by a Flax model.
        kwargs: lookup options (see `gptrio.hub.HubOptions`); `max_memory`, `offload_folder` and `offload_buffers` (see
            `gptrio.models.base.device_map.Placement`); overrides of the configuration such as `num_labels`; further
            named arguments of the class; `load_in_8bit` or `load_in_4bit` for bitsandbytes; and arguments
            of Transformers that change nothing here.

    Raises:
        CheckpointNotFoundError, CheckpointFormatError, UnsafeCheckpointError, SizeMismatchError: see `gptrio.errors`.
        OptionError: an argument is unknown.
        UnsupportedError: an argument of Transformers that needs something that gptrio lacks.
    """
    options = HubOptions.pop_from(kwargs)
    drop_arguments_without_effect(cls.__name__, kwargs)
    placement = Placement.pop_from(device_map, kwargs)
    quantization = quantization_config or load_in or _pop_bitsandbytes(kwargs)
    config, unknown = read_config(cls.config_class, config, name_or_path, options, kwargs)
    check_constructor_takes(cls, unknown)
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    options = pinned(options, config, name_or_path)
    names = FROM_FLAX if from_flax else (SAFE_WEIGHTS_NAME, WEIGHTS_NAME)
    source = _open(name_or_path, state_dict, names, use_safetensors, variant, options)
    _check_layer_count(source, config)
    quantization = quantization or getattr(config, "quantization_config", None)
    quantizer = get_quantizer(quantization) if quantization else None
    default = None if quantizer is None else quantizer.default_dtype
    dtype = _weight_dtype(next((d for d in (dtype, torch_dtype, default) if d is not None), None), config, source)
    model = build(cls, config, *model_args, dtype=dtype, device="meta", arguments=unknown)
    keep_in_float32(model, dtype)
    if quantizer is not None:
        quantizer.prepare(model)
    device_map = placement.resolve(model, dtype)
    report = load_weights(model, source, quantizer, device_map, ignore_mismatched_sizes, key_mapping)
    report.warn(f"{cls.__name__} from {os.fspath(name_or_path)}" if name_or_path else cls.__name__)
    _set_generation_config(model, generation_config, name_or_path, options, kwargs)
    model.name_or_path = str(name_or_path or "")
    model.eval()
    is_mapped = quantizer is None and isinstance(source, TensorReader) and source.is_mapped(dtype)
    placement.dispatch(model, device_map, is_mapped)
    return (model, report.to_dict()) if output_loading_info else model


def load_weights(
    model: PreTrainedModel,
    source: TensorSource,
    quantizer: Quantizer | None,
    device_map: DeviceMap | None,
    ignore_mismatched_sizes: bool,
    key_mapping: Mapping[str, str] | None,
) -> LoadReport:
    """Load the weights of a model without storage: those of the checkpoint, and new ones for the missing ones.

    Args:
        model: its parameters are on the meta device, its layers prepared by `quantizer`.
        source: the open checkpoint.
        quantizer: quantizes while tensors are read, on the CPU, or None.
        device_map: where tensors go.
        ignore_mismatched_sizes: initialise tensors of other shapes at random instead of raising.
        key_mapping: see `load_model`.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    device_of = device_function(device_map)
    report = load_into(
        model,
        source,
        _key_rules(model, quantizer),
        dtype={name: tensor.dtype for name, tensor in state.items() if tensor.is_floating_point()}.get,
        device=device_of,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        on_tensor=functools.partial(quantizer.load_tensor, model) if quantizer else None,
        key_mapping=key_mapping,
    )
    model.tie_weights()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tied = {name for name, parameter in parameters.items() if not parameter.is_meta}  # or read from the checkpoint
    report.missing = [name for name in report.missing if name not in tied]
    initialize_missing(model, device_of)
    if quantizer is not None:
        quantizer.finish(model)
        devices = {device_of(name) for name in state}
        if len(devices) == 1 and devices != {torch.device("cpu")}:
            model.to(devices.pop())
    return report


def _key_rules(model: PreTrainedModel, quantizer: Quantizer | None) -> KeyRules:
    return KeyRules(
        base_model_prefix=model.base_model_prefix,
        aliases=model.key_aliases,
        ignore_unexpected=(
            *model.computed_buffers,
            *(model._keys_to_ignore_on_load_unexpected or ()),
            *(quantizer.ignore_unexpected if quantizer else ()),
        ),
        ignore_missing=(
            *(model._keys_to_ignore_on_load_missing or ()),
            *(quantizer.ignore_missing if quantizer else ()),
        ),
        tied={**_shared_parameters(model), **model.tied_weights()},
    )


def _shared_parameters(model: nn.Module) -> dict[str, str]:
    """Parameters with several names: name -> the first of them."""
    first: dict[int, str] = {}
    names = ((name, first.setdefault(id(p), name)) for name, p in model.named_parameters(remove_duplicate=False))
    return {name: earlier for name, earlier in names if name != earlier}


def _pop_bitsandbytes(kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Take the short forms of bitsandbytes out of the arguments."""
    chosen: dict[str, Any] = {name: kwargs.pop(name) for name in ("load_in_4bit", "load_in_8bit") if name in kwargs}
    return {"quant_method": "bitsandbytes", **chosen} if any(chosen.values()) else None


def _check_layer_count(source: TensorSource, config: PretrainedConfig) -> None:
    """Raise ConfigError for many more layers than the weights have, before building any."""
    numbers = (part for key in list(source.keys()) for part in key.split(".") if part.isdecimal())
    stored = max(map(int, numbers), default=-1) + 1
    promised = getattr(config, "num_hidden_layers", 0)
    if promised > stored + _MOST_NEW_LAYERS:
        raise ConfigError(
            f"{type(config).__name__}: num_hidden_layers={promised} is not possible; the weights have {stored} layers"
        )


def _open(
    name_or_path: str | os.PathLike[str] | None,
    state_dict: Mapping[str, Tensor] | None,
    names: Sequence[str],
    use_safetensors: bool | None,
    variant: str | None,
    options: HubOptions,
) -> TensorSource:
    if state_dict is not None:
        return TensorDict(state_dict)
    if name_or_path is None:
        raise OptionError("from_pretrained needs a name or folder to read weights from, or state_dict")
    return open_checkpoint(name_or_path, names=names, use_safetensors=use_safetensors, variant=variant, options=options)


def _weight_dtype(
    dtype: torch.dtype | str | Mapping[str, Any] | None, config: PretrainedConfig, source: TensorSource
) -> torch.dtype:
    """Type of the weights; "auto" is the configuration's, or else that of the first floating-point tensor."""
    if isinstance(dtype, Mapping):  # by part of a model of several; "" is all else, and None float32
        dtype = torch.float32 if dtype.get("") is None else dtype[""]
    if dtype is None:
        return torch.get_default_dtype()
    if dtype == "auto":
        stored = (source.dtype(name) for name in list(source.keys()))
        first = next((kind for kind in stored if kind.is_floating_point), None) if config.dtype is None else None
        return config.dtype or first or torch.get_default_dtype()
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise OptionError(f"dtype={dtype!r} is not a type; expected float32, bfloat16, float16 or 'auto'")
    return found


def _set_generation_config(
    model: PreTrainedModel,
    given: GenerationConfig | None,
    name_or_path: str | os.PathLike[str] | None,
    options: HubOptions,
    overrides: Mapping[str, Any],
) -> None:
    """Set the given options, or those in the folder of the weights; without either, the model's are not changed.

    Overrides of the configuration that are options of `generate` override those in the folder of the weights.
    """
    if not model.can_generate():
        return
    given = as_own_generation_config(given)
    if given is not None:
        content = dict(given) if isinstance(given, Mapping) else given.to_dict()
        model.generation_config = GenerationConfig.from_dict(content)
    elif name_or_path is not None and not os.path.isfile(name_or_path):
        own = {field.name: overrides[field.name] for field in fields(GenerationConfig) if field.name in overrides}
        with contextlib.suppress(CheckpointNotFoundError):
            model.generation_config = GenerationConfig.from_pretrained(name_or_path, **options.as_kwargs(), **own)
