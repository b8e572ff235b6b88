"""From a checkpoint to a model: built without storage, then given the file's tensors one by one."""

from __future__ import annotations

import copy
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gptrio.checkpoint.keys import IGNORED_BUFFERS
from gptrio.checkpoint.load import LoadReport, TensorReader, load_into, open_checkpoint
from gptrio.config import PretrainedConfig
from gptrio.config.auto import as_own_config
from gptrio.config.serialization import CONFIG_NAME
from gptrio.errors import ConfigError, OptionError
from gptrio.generation.options.config import CONFIG_FILE as GENERATION_CONFIG_NAME
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.options.resolve import as_own_config as as_own_generation_config
from gptrio.hub import HubOptions
from gptrio.models.base.arguments import check_constructor_takes, drop_arguments_without_effect
from gptrio.models.base.device_map import DeviceMap, Place, Placement, places_of
from gptrio.models.base.initialization import mark_initialised
from gptrio.models.base.loading_report import loading_info, warn_of_differences
from gptrio.models.base.pretrained import PreTrainedModel
from gptrio.nn.attention import check_implementation

if TYPE_CHECKING:
    from gptrio.quantization import QuantizationConfig, Quantizer

Model = TypeVar("Model", bound=PreTrainedModel)
Source = TensorReader | Mapping[str, Tensor]


def load_model(
    cls: type[Model],
    name_or_path: str | os.PathLike[str] | None,
    *model_args: Any,
    config: PretrainedConfig | str | os.PathLike[str] | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
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
    **kwargs: Any,
) -> Model | tuple[Model, dict[str, Any]]:
    """Load a model in evaluation mode.

    Tensors go from the memory-mapped files straight to their place: there is no second copy of the model, and what the
    files hold is never initialised at random first.

    Args:
        cls: class of the model.
        name_or_path: folder, packaged name, hub id or a single weight file; None with `config` and `state_dict`.
        model_args: further positional arguments of the class.
        config: configuration, or where to read it; beside the weights if None.
        state_dict: tensors to load instead of files.
        dtype: type of the weights, or "auto" for that of the checkpoint; float32 (torch's default type) if None.
        torch_dtype: older name of `dtype`.
        device_map: a device, "auto", or {name of a module: device}.
        attn_implementation: "eager", "sdpa" or "flash_attention_2".
        use_safetensors: True refuses torch files, False passes safetensors over.
        variant: middle part of the file names, such as "fp16".
        ignore_mismatched_sizes: draw tensors of other shapes anew instead of raising.
        output_loading_info: also return a dictionary of missing, unexpected and mismatched keys.
        quantization_config: quantize on load: an `Int8Config`, `Int4Config` or `BitsAndBytesConfig`, its dictionary, or
            its name; what the checkpoint says if None.
        load_in: "int8", "int4", or by bitsandbytes "nf4", "fp4" or "llm_int8", for short.
        generation_config: options of `generate`, instead of those beside the weights.
        key_mapping: {regular expression: replacement}; the first that is found in a checkpoint's key renames it.
        kwargs: lookup options (see `gptrio.hub.HubOptions`); `max_memory`, `offload_folder` and `offload_buffers` (see
            `gptrio.models.base.device_map.Placement`); overrides of the configuration such as `num_labels`; further
            named arguments of the class; `load_in_8bit` or `load_in_4bit` for bitsandbytes; and what Transformers takes
            that changes nothing here.

    Raises:
        CheckpointNotFoundError, CheckpointFormatError, UnsafeCheckpointError, SizeMismatchError: see `gptrio.errors`.
        OptionError: an argument that is none of these and no configuration key.
        UnsupportedError: an argument of Transformers that asks for what gptrio does not have.
    """
    options = HubOptions.pop_from(kwargs)
    drop_arguments_without_effect(cls.__name__, kwargs)
    placement = Placement.pop_from(device_map, kwargs)
    quantization = quantization_config or load_in or _bitsandbytes(kwargs)
    settings, unknown = _read_config(cls, config, name_or_path, options, kwargs)
    check_constructor_takes(cls, unknown)
    if attn_implementation is not None:
        settings._attn_implementation = attn_implementation
    options = _pinned(options, settings, name_or_path)
    source = _open(name_or_path, state_dict, use_safetensors, variant, options)
    quantizer = _quantizer(quantization or getattr(settings, "quantization_config", None))
    wanted = torch_dtype if dtype is None else dtype
    if wanted is None and quantizer is not None:
        wanted = quantizer.default_dtype
    number_format = _number_format(wanted, settings, source)
    _hold_layers_against(source, settings)
    model = build(cls, settings, *model_args, dtype=number_format, device="meta", arguments=unknown)
    _keep_in_float32(model, number_format)
    if quantizer is not None:
        quantizer.prepare(model)
    device_map = placement.resolve(model, number_format)
    place = places_of(device_map)
    report = _fill(model, source, quantizer, place, ignore_mismatched_sizes, key_mapping)
    warn_of_differences(report, cls.__name__, name_or_path)
    _take_generation_config(model, generation_config, name_or_path, options, kwargs)
    model.name_or_path = str(name_or_path or "")
    model.eval()
    placement.dispatch(model, device_map)
    return (model, loading_info(report)) if output_loading_info else model


_SPARE_LAYERS = 1000  # that a configuration may have beyond those of its weights, to be drawn anew


def _hold_layers_against(source: Source, config: PretrainedConfig) -> None:
    """Raise ConfigError for many more layers than there are weights of, before building any."""
    numbers = (part for key in source.keys() for part in key.split(".") if part.isdecimal())  # noqa: SIM118 - a reader is no mapping
    stored = max(map(int, numbers), default=-1) + 1
    promised = getattr(config, "num_hidden_layers", 0)
    if promised > stored + _SPARE_LAYERS:
        raise ConfigError(
            f"{type(config).__name__}: num_hidden_layers={promised} is not possible; the weights have {stored} layers"
        )


def _bitsandbytes(kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Take the short forms of bitsandbytes out of the arguments."""
    chosen: dict[str, Any] = {name: kwargs.pop(name) for name in ("load_in_4bit", "load_in_8bit") if name in kwargs}
    return {"quant_method": "bitsandbytes", **chosen} if any(chosen.values()) else None


def _quantizer(config: QuantizationConfig | Mapping[str, Any] | str | None) -> Quantizer | None:
    if not config:
        return None
    from gptrio.quantization import get_quantizer

    return get_quantizer(config)


def _fill(
    model: PreTrainedModel,
    source: Source,
    quantizer: Quantizer | None,
    place: Place,
    ignore_mismatched_sizes: bool,
    key_mapping: Mapping[str, str] | None,
) -> LoadReport:
    """Give a model without storage its weights: those of the checkpoint, and new ones where it has none."""
    tensors = model.state_dict()
    kinds = {name: t.dtype for name, t in tensors.items() if isinstance(t, Tensor) and t.is_floating_point()}
    report = load_into(
        model,
        source,
        base_model_prefix=model.base_model_prefix,
        ignore_unexpected=(
            *IGNORED_BUFFERS,
            *(model._keys_to_ignore_on_load_unexpected or ()),
            *(quantizer.ignore_unexpected if quantizer else ()),
        ),
        ignore_missing=(
            *(model._keys_to_ignore_on_load_missing or ()),
            *(quantizer.ignore_missing if quantizer else ()),
        ),
        tied={**_shared(model), **model.tied_weights()},
        dtype=kinds.get,
        device=place,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        take=functools.partial(quantizer.place, model) if quantizer else None,
        key_mapping=key_mapping,
    )
    model.tie_weights()
    _initialise_rest(model, place)
    if quantizer is not None:
        quantizer.finish(model)
        if isinstance(place, torch.device) and place.type != "cpu":  # where weights are quantized
            model.to(place)
    return report


def _keep_in_float32(model: PreTrainedModel, number_format: torch.dtype) -> None:
    """Let modules that the class names be of float32 in a model of half precision, float16 alone or either."""
    names: list[str] = []
    if number_format is torch.float16:
        names += model._keep_in_fp32_modules or ()
    if number_format in (torch.float16, torch.bfloat16):
        names += model._keep_in_fp32_modules_strict or ()
    for path, parameter in model.named_parameters():
        if any(re.search(rf"(^|\.){name}($|\.)", path) for name in names):
            parameter.data = parameter.data.float()


def _shared(model: nn.Module) -> dict[str, str]:
    """Names of parameters that are one with another of an earlier name: name -> earlier name."""
    first: dict[int, str] = {}
    names = ((name, first.setdefault(id(p), name)) for name, p in model.named_parameters(remove_duplicate=False))
    return {name: earlier for name, earlier in names if name != earlier}


def build(
    cls: type[Model],
    config: PretrainedConfig,
    *model_args: Any,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    attn_implementation: str | None = None,
    device: torch.device | str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Model:
    """Build a model with new weights; on the meta device parameters have no storage, and all else its values.

    Args:
        cls: class of the model.
        config: its configuration.
        model_args: further positional arguments of the class.
        dtype: type of the weights; torch's default type if None.
        torch_dtype: older name of `dtype`.
        attn_implementation: attention back end.
        device: where the weights are; torch's default device if None.
        arguments: further named arguments of the class.
    """
    config = as_own_config(config)
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    check_implementation(config._attn_implementation or "sdpa")
    chosen = torch_dtype if dtype is None else dtype
    number_format = getattr(torch, chosen) if isinstance(chosen, str) else chosen
    number_format = number_format or torch.get_default_dtype()
    without_storage = device == "meta"
    device = torch.get_default_device() if device is None or without_storage else device
    with torch.device(device), _Building(number_format, without_storage):
        model = cls(config, *model_args, **arguments or {})
    config.dtype = number_format
    return model


_FILLED = (
    torch.empty,
    torch.empty_strided,
    torch.zeros,
    torch.ones,
    torch.rand,
    torch.randn,
    torch.eye,
    torch.linspace,
)
_INFERRED = (torch.tensor, torch.full, torch.arange)  # whose type follows from their values


class _Building(TorchFunctionMode):
    """In this thread, makes tensors of a type where none is named, and draws nothing for those without storage.

    Without storage are parameters alone, which modules make empty: a buffer, the weights of a loss or any other tensor
    that a constructor makes is in no checkpoint, and has the value that the constructor gives it.

    torch's default type is one for all threads, of which others may be building models of other types. To draw without
    storage, torch would load its compiler, which takes a second.
    """

    def __init__(self, dtype: torch.dtype, without_storage: bool) -> None:
        super().__init__()
        self._dtype, self._without_storage = dtype, without_storage

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of torch, `normal_` on the meta device excepted."""
        kwargs = kwargs or {}
        if self._without_storage and func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        if func in _FILLED and kwargs.get("dtype") is None:
            return func(*args, **{**kwargs, "dtype": self._dtype})
        if func in _INFERRED and kwargs.get("dtype") is None:
            made = func(*args, **kwargs)
            is_free = made.is_floating_point() and not (args and isinstance(args[0], Tensor))
            return func(*args, **{**kwargs, "dtype": self._dtype}) if is_free else made
        if getattr(func, "__name__", "") == "normal_":
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def _read_config(
    cls: type[PreTrainedModel],
    config: PretrainedConfig | str | os.PathLike[str] | None,
    name_or_path: str | os.PathLike[str] | None,
    options: HubOptions,
    overrides: dict[str, Any],
) -> tuple[PretrainedConfig, dict[str, Any]]:
    """The configuration with overrides applied, and the overrides that it does not know."""
    config = as_own_config(config)
    if isinstance(config, PretrainedConfig):
        config = copy.deepcopy(config)  # the caller's stays as it is
        known = {key: value for key, value in overrides.items() if hasattr(config, key)}
        for key, value in known.items():
            setattr(config, key, value)
        config.validate()
        return config, {key: value for key, value in overrides.items() if key not in known}
    where = config or name_or_path
    if where is None:
        raise OptionError(f"{cls.__name__}.from_pretrained needs a name, a folder, or config and state_dict")
    return cls.config_class.from_pretrained(where, return_unused_kwargs=True, **options.as_kwargs(), **overrides)


def _pinned(options: HubOptions, config: PretrainedConfig, name_or_path: str | os.PathLike[str] | None) -> HubOptions:
    """The lookup options for the commit that the configuration was read from, or else that of the repository's own."""
    if name_or_path is None or os.path.exists(name_or_path):
        return options
    if config._commit_hash is not None and config.name_or_path == os.fspath(name_or_path):
        return replace(options, revision=config._commit_hash)
    config_file = options.find(name_or_path, CONFIG_NAME)
    return options if config_file is None else options.pinned_to(config_file)


def _open(
    name_or_path: str | os.PathLike[str] | None,
    state_dict: Mapping[str, Tensor] | None,
    use_safetensors: bool | None,
    variant: str | None,
    options: HubOptions,
) -> Source:
    if state_dict is not None:
        return state_dict
    if name_or_path is None:
        raise OptionError("from_pretrained needs a name or folder to read weights from, or state_dict")
    return open_checkpoint(name_or_path, use_safetensors=use_safetensors, variant=variant, options=options)


def _number_format(dtype: torch.dtype | str | None, config: PretrainedConfig, source: Source) -> torch.dtype:
    """Type of the weights; "auto" is the configuration's, or else that of the first floating-point tensor."""
    if dtype is None:
        return torch.get_default_dtype()
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        found = getattr(torch, dtype, None)
        if not isinstance(found, torch.dtype):
            raise OptionError(f"dtype={dtype!r} is no type; expected float32, bfloat16, float16 or 'auto'")
        return found
    if config.dtype is not None:
        return config.dtype
    stored = (source.dtype(k) if isinstance(source, TensorReader) else source[k].dtype for k in source.keys())  # noqa: SIM118 - a reader is no mapping
    return next((kind for kind in stored if kind.is_floating_point), torch.get_default_dtype())


def _initialise_rest(model: PreTrainedModel, place: Place) -> None:
    """Give storage and new values to parameters that the checkpoint did not have, and buffers their place."""
    empty: dict[nn.Module, dict[str, nn.Parameter]] = {}
    for path, module in model.named_modules():
        for leaf, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[leaf] = buffer.to(place(f"{path}.{leaf}") if callable(place) else place)
        for leaf, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                device = place(f"{path}.{leaf}") if callable(place) else place
                data = torch.empty_like(parameter, device=device)
                empty.setdefault(module, {})[leaf] = nn.Parameter(data, parameter.requires_grad)
    for module, parameters in empty.items():
        loaded = {leaf: p for leaf, p in module._parameters.items() if p is not None and leaf not in parameters}
        for leaf, parameter in loaded.items():  # stands in, so that what was loaded is not drawn anew
            module._parameters[leaf] = nn.Parameter(torch.empty_like(parameter), parameter.requires_grad)
        module._parameters.update(parameters)
        model._init_weights(module)
        module._parameters.update(loaded)
    model.apply(mark_initialised)
    model.tie_weights()


def _take_generation_config(
    model: PreTrainedModel,
    given: GenerationConfig | None,
    name_or_path: str | os.PathLike[str] | None,
    options: HubOptions,
    overrides: Mapping[str, Any],
) -> None:
    """Take the options that are given, or those beside the weights; without either those of the configuration stay.

    Overrides of the configuration that are options of `generate` win over those beside the weights.
    """
    if not model.can_generate():
        return
    given = as_own_generation_config(given)
    if given is not None:
        model.generation_config = GenerationConfig.from_dict(
            dict(given) if isinstance(given, Mapping) else given.to_dict()
        )
        return
    if name_or_path is None or os.path.isfile(name_or_path):
        return
    if options.find(name_or_path, GENERATION_CONFIG_NAME) is not None:
        own = {field.name: overrides[field.name] for field in fields(GenerationConfig) if field.name in overrides}
        model.generation_config = GenerationConfig.from_pretrained(name_or_path, **options.as_kwargs(), **own)
