"""Replaces the linear layers of a model by quantized ones: native int8 and int4, or those of bitsandbytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from gptrio.errors import OptionError
from gptrio.foreign import QUANTIZATION_CONFIG, content_of, is_foreign
from gptrio.quantization.bitsandbytes_config import BitsAndBytesConfig
from gptrio.quantization.config import Int4Config, Int8Config

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from gptrio.checkpoint.load import TensorSource

QuantizationConfig = Int8Config | Int4Config | BitsAndBytesConfig

__all__ = ["BitsAndBytesConfig", "Int4Config", "Int8Config", "Quantizer", "dequantize", "get_quantizer", "quantize"]

_CONFIGS: dict[str, type[QuantizationConfig]] = {
    "int8": Int8Config,
    "gptrio_int8": Int8Config,
    "int4": Int4Config,
    "gptrio_int4": Int4Config,
    "bitsandbytes": BitsAndBytesConfig,
}
_NAMES: dict[str, Callable[[], QuantizationConfig]] = {
    "int8": Int8Config,
    "int4": Int4Config,
    "nf4": partial(BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "fp4": partial(BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "llm_int8": partial(BitsAndBytesConfig, load_in_8bit=True),
}


class Quantizer(Protocol):
    """What loading needs of a quantization method.

    Attributes:
        ignore_missing: patterns of model keys that a checkpoint in full precision lacks.
        ignore_unexpected: patterns of checkpoint keys that belong to quantized weights.
        default_dtype: dtype of everything that is not quantized, if the caller passes none; None for the usual one.
        is_trainable: whether adapters can be trained on the quantized layers.
        is_qat_trainable: whether the quantized weights themselves can be trained: never.
        quantization_config: how it quantizes.
    """

    ignore_missing: tuple[str, ...]
    ignore_unexpected: tuple[str, ...]
    default_dtype: torch.dtype | None
    is_trainable: bool
    is_qat_trainable: bool

    @property
    def quantization_config(self) -> QuantizationConfig:
        """How it quantizes."""

    def prepare(self, model: nn.Module) -> None:
        """Swap the layers of a model; weights that are not on the meta device are quantized at once."""

    def load_tensor(
        self, model: nn.Module, name: str, tensor: Tensor, key: str = "", source: TensorSource | None = None
    ) -> bool:
        """Load a checkpoint's tensor for the model key `name` if its layer is quantized; else return False.

        `key` is the tensor's name in the checkpoint `source`.
        """

    def finish(self, model: nn.Module) -> None:
        """Tie tied weights, after all tensors are loaded."""

    def dequantize(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Put layers in full precision, of the type, in place of the quantized ones."""


def get_quantizer(config: QuantizationConfig | Mapping[str, Any] | str) -> Quantizer:
    """The quantizer of a configuration.

    Args:
        config: a configuration object, its dictionary from `config.json`, or a name: "int8" or "int4", or by
            bitsandbytes "nf4", "fp4" or "llm_int8".

    Raises:
        OptionError: no such method or option.
        MissingDependencyError: bitsandbytes is needed and not installed.
    """
    parsed = _parsed(config)
    if isinstance(parsed, BitsAndBytesConfig):
        from gptrio.quantization.bitsandbytes import BitsAndBytesQuantizer

        return BitsAndBytesQuantizer(parsed)
    from gptrio.quantization.native import NativeQuantizer

    return NativeQuantizer(parsed)


def quantize(model: nn.Module, config: QuantizationConfig | Mapping[str, Any] | str) -> None:
    """Quantize the linear layers of a built model in place, freeing each full-precision weight as it goes."""
    quantizer = get_quantizer(config)
    quantizer.prepare(model)
    quantizer.finish(model)


def dequantize(model: nn.Module, config: QuantizationConfig | Mapping[str, Any] | str, dtype: torch.dtype) -> None:
    """Put layers in full precision in place of those that `quantize`, or loading, has made as `config` says."""
    get_quantizer(config).dequantize(model, dtype)
    owner: Any = model
    owner.is_quantized = False
    for name in ("is_loaded_in_8bit", "is_loaded_in_4bit", "quantization_method"):
        vars(model).pop(name, None)
    if hasattr(model, "config"):
        del owner.config.quantization_config


def _parsed(config: QuantizationConfig | Mapping[str, Any] | str) -> QuantizationConfig:
    if isinstance(config, (Int8Config, Int4Config, BitsAndBytesConfig)):
        return config
    if isinstance(config, str):
        if config not in _NAMES:
            raise OptionError(f"quantization method {config!r} is not known; use one of {', '.join(_NAMES)}")
        return _NAMES[config]()
    options = content_of(config, with_defaults=True) if is_foreign(config, QUANTIZATION_CONFIG) else dict(config)
    method = options.pop("quant_method", None)
    if method not in _CONFIGS:
        raise OptionError(f"quantization method {method!r} is not known; use one of {', '.join(_CONFIGS)}")
    make: Callable[..., QuantizationConfig] = _CONFIGS[method]
    try:
        return make(**options)
    except TypeError as error:
        raise OptionError(f"quantization method {method!r}: {error}") from None
