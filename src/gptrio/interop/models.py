"""Converts models: builds the other library's class without storage, and shares the parameters with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import gptrio
from gptrio.config.auto import as_own_config
from gptrio.errors import UnsupportedError
from gptrio.generation.options.resolve import as_own_config as as_own_generation_config
from gptrio.models.base.building import TensorDefaults, build
from gptrio.models.base.initialization import mark_initialised
from gptrio.models.base.pretrained import PreTrainedModel
from gptrio.quantization.modules import replace_module


def model_to_transformers(model: PreTrainedModel, library: Any) -> Any:
    """See `gptrio.to_transformers`.

    Args:
        model: a model of this package.
        library: the module `transformers`.
    """
    theirs = _class_of(model, "gptrio", library)
    if getattr(model, "is_quantized", False) and not _quantized_layers(model):
        raise UnsupportedError(
            f"{type(model).__name__} has weights that gptrio has quantized, which Transformers has no layers for; load "
            "it without quantization, or with BitsAndBytesConfig"
        )
    values = {**model.config.to_dict(), "dtype": model.dtype}
    config = theirs.config_class.from_dict(values, attn_implementation=_attention_for(model))
    config.name_or_path = model.config.name_or_path
    with TensorDefaults(torch.get_default_dtype(), empty_on_meta=True):
        other = theirs(config)
    _replace_quantized(model, other, library)
    _share(model, other)
    for module in other.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(model.device)
    if model.generation_config is not None:
        options = as_own_generation_config(model.generation_config).to_dict()
        options.pop("_from_model_config", None)  # belongs to a hash of the original configuration
        other.generation_config = library.GenerationConfig.from_dict(options)
    if model.is_gradient_checkpointing:
        other.gradient_checkpointing_enable()
    return other


def model_from_transformers(model: Any) -> PreTrainedModel:
    """See `gptrio.from_transformers`."""
    ours = _class_of(model, "transformers", gptrio)
    config = as_own_config(model.config)
    if getattr(config, "quantization_config", None) and not _quantized_layers(model):
        raise UnsupportedError(
            f"{type(model).__name__} has weights that are quantized by another library than bitsandbytes; save it and "
            "load it with from_pretrained, or convert it before it is quantized"
        )
    other: PreTrainedModel = build(ours, config, dtype=model.dtype, device="meta")
    _replace_quantized(model, other, None)
    _share(model, other)
    other.apply(mark_initialised)
    other.name_or_path = config.name_or_path
    if other.can_generate():
        other.generation_config = as_own_generation_config(model.generation_config)
    if model.is_gradient_checkpointing:
        other.gradient_checkpointing_enable()
    return other


def _class_of(model: Any, package: str, library: Any) -> Any:
    """The class of the same name in the other library, of the first base that `package` itself defines.

    Raises:
        UnsupportedError: there is none, or accelerate keeps the model's weights elsewhere.
    """
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise UnsupportedError(
            f"accelerate moves the weights of {type(model).__name__} between places by hooks, which stay with it; "
            "convert the model before that, and dispatch the other one"
        )
    for base in type(model).__mro__:
        own = base.__module__.startswith(f"{package}.models.")
        if own and hasattr(library, base.__name__) and hasattr(base, "config_class") and base.config_class is not None:
            return getattr(library, base.__name__)
    raise UnsupportedError(f"{library.__name__} has no class like {type(model).__name__}")


def _attention_for(model: PreTrainedModel) -> str | None:
    """The back end of Transformers that computes our numbers; None for its default."""
    config = model.config
    changed = (
        not getattr(config, "scale_attn_weights", True)
        or getattr(config, "scale_attn_by_inverse_layer_idx", False)
        or getattr(config, "reorder_and_upcast_attn", False)
    )
    chosen: str | None = config._attn_implementation
    if chosen in (None, "sdpa") and (changed or config.model_type == "gpt_neo"):  # see docs/compatibility.md
        return "eager"
    return chosen


def _quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Layers of bitsandbytes, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if type(module).__module__.partition(".")[0] == "bitsandbytes"
    }


def _replace_quantized(source: Any, target: Any, library: Any) -> None:
    """Put the layers of bitsandbytes of one model into another.

    Args:
        source: the model with these layers.
        target: the other model; it is marked as quantized.
        library: the module `transformers`, if the target is one of its models, else None.
    """
    layers = _quantized_layers(source)
    for path, layer in layers.items():
        replace_module(target, path, layer)
    if not layers:
        return
    target.is_quantized = True
    if library is not None:
        config = library.BitsAndBytesConfig.from_dict(dict(source.config.quantization_config))
        target.config.quantization_config = config
        target.quantization_method = config.quant_method
        target.is_loaded_in_4bit, target.is_loaded_in_8bit = config.load_in_4bit, config.load_in_8bit
        target.hf_quantizer = library.quantizers.AutoHfQuantizer.from_config(config, pre_quantized=True)


def _share(source: nn.Module, target: nn.Module) -> None:
    """Share the parameters, modes and common buffers of a model with one of the same structure, without storage.

    Raises:
        UnsupportedError: a parameter has no counterpart, or one of another shape.
    """
    homes = dict(target.named_modules())
    empty = {name for name, _ in target.named_parameters(remove_duplicate=False)}
    strays = []
    for path, module in source.named_modules():
        home = homes.get(path)
        for leaf, parameter in module._parameters.items():
            own = None if home is None else home._parameters.get(leaf)
            if parameter is None and own is None:
                continue
            if parameter is None or own is None or (own.is_meta and own.shape != parameter.shape):
                strays.append(f"{path}.{leaf}")
            else:
                assert home is not None
                home._parameters[leaf] = parameter
                empty.discard(f"{path}.{leaf}".removeprefix("."))
        if home is not None:
            home.training = module.training
            home._buffers.update({leaf: x for leaf, x in module._buffers.items() if leaf in home._buffers})
    if strays or empty:
        shown = ", ".join([*strays, *sorted(empty)][:5])
        raise UnsupportedError(
            f"{type(source).__name__} is not built as its configuration says ({shown} would have no counterpart); "
            "convert the plain model, before layers are replaced or adapters added"
        )
