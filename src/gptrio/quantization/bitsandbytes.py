"""Linear layers of the bitsandbytes library in place of ours: nf4, fp4 and LLM.int8(), `Conv1D` included."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gptrio.errors import CheckpointFormatError, OptionError, import_optional
from gptrio.nn.linear import LINEARS, Conv1D, filled_linear, weight_view
from gptrio.quantization.bitsandbytes_config import BitsAndBytesConfig
from gptrio.quantization.modules import (
    check_weight_shape,
    full_precision_modules,
    output_head,
    replace_module,
    tied_head,
)

if TYPE_CHECKING:
    from gptrio.checkpoint.load import TensorSource

_STATISTICS = r"\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)$"


def load_bitsandbytes() -> Any:
    """Import bitsandbytes.

    Raises:
        MissingDependencyError: it is not installed.
    """
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore", DeprecationWarning)  # from what it imports
        return import_optional(
            "bitsandbytes", "BitsAndBytesConfig needs the bitsandbytes package: pip install 'gptrio[bitsandbytes]'"
        )


class BitsAndBytesQuantizer:
    """Quantizes linear layers with bitsandbytes, while a checkpoint streams in or in a built model."""

    ignore_missing: tuple[str, ...] = ()
    ignore_unexpected: tuple[str, ...] = (_STATISTICS, r"\.(SCB|weight_format)$")
    default_dtype: torch.dtype | None = torch.float16  # of everything that is not quantized, when the caller names none
    is_trainable, is_qat_trainable = True, False

    def __init__(self, config: BitsAndBytesConfig) -> None:
        if not config.is_quantizable():
            raise OptionError("BitsAndBytesConfig names no method; pass load_in_8bit=True or load_in_4bit=True")
        self.config = config
        self._bnb = load_bitsandbytes()

    @property
    def quantization_config(self) -> BitsAndBytesConfig:
        """How it quantizes."""
        return self.config

    def prepare(self, model: nn.Module) -> None:
        """Swap the layers of a model; weights that are not on the meta device are quantized at once."""
        config = self.config
        if config.llm_int8_skip_modules is None:
            head, skipped = output_head(model), full_precision_modules(model)
        else:
            head, skipped = tied_head(model), tuple(config.llm_int8_skip_modules)
        for name, layer in list(model.named_modules()):
            is_skipped = layer is head or any(part in skipped for part in name.split(".")) or name in skipped
            if not isinstance(layer, LINEARS) or is_skipped:
                continue
            replace_module(model, name, self._swapped(layer))
        owner: Any = model
        owner.is_quantized = True
        owner.is_loaded_in_8bit, owner.is_loaded_in_4bit = config.load_in_8bit, config.load_in_4bit
        owner.quantization_method = config.quant_method
        if hasattr(model, "config"):
            owner.config.quantization_config = config.to_dict()

    def load_tensor(
        self, model: nn.Module, name: str, tensor: Tensor, key: str = "", source: TensorSource | None = None
    ) -> bool:
        """Load a checkpoint's tensor, full precision or codes, if its layer is quantized; else return False.

        Args:
            model: the prepared model.
            name: key of the model.
            tensor: what the checkpoint holds for it.
            key: key in the checkpoint.
            source: the checkpoint, which holds the statistics of codes.

        Raises:
            CheckpointFormatError: codes without statistics.
            SizeMismatchError: another shape than the layer's.
        """
        path, _, leaf = name.rpartition(".")
        layer: Any = model.get_submodule(path)
        if leaf != "weight" or not isinstance(layer, (self._bnb.nn.Linear4bit, self._bnb.nn.Linear8bitLt)):
            return False
        four = isinstance(layer, self._bnb.nn.Linear4bit)
        statistics = {} if source is None else _statistics(source, key, four)
        if statistics:
            (self._load_4bit_codes if four else self._load_8bit_codes)(layer, tensor, statistics)
        elif not tensor.is_floating_point():
            raise CheckpointFormatError(f"{name} holds codes, but the checkpoint lacks their scales")
        else:
            self._quantize(layer, tensor)
        return True

    def finish(self, model: nn.Module) -> None:
        """Nothing is left to do: a tied head is not quantized."""

    @torch.no_grad()
    def dequantize(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Put layers in full precision in place of those of bitsandbytes."""
        for name, layer in list(model.named_modules()):
            if isinstance(layer, (self._bnb.nn.Linear4bit, self._bnb.nn.Linear8bitLt)):
                transposed = getattr(layer, "source_cls", None) is Conv1D
                plain = filled_linear(self._dequantized(layer).to(dtype), layer.bias, transposed)
                replace_module(model, name, plain.train(layer.training))

    def _dequantized(self, layer: Any) -> Tensor:
        """The weight (out, in) that a layer's codes stand for."""
        layer.state_dict()  # makes bitsandbytes unpack codes that it has packed for the processor
        weight = layer.weight
        if isinstance(layer, self._bnb.nn.Linear4bit):
            full: Tensor = self._bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        elif weight.has_fp16_weights:
            full = weight.data
        else:
            scales = weight.SCB if layer.state.SCB is None else layer.state.SCB
            full = self._bnb.functional.int8_vectorwise_dequant(weight.data, scales)
        return full

    def _swapped(self, layer: nn.Linear | Conv1D) -> nn.Module:
        view = weight_view(layer)
        inner, outer = view.inputs, view.outputs
        config, bias = self.config, layer.bias is not None
        with torch.device("meta"):
            if config.load_in_8bit:
                new = self._bnb.nn.Linear8bitLt(
                    inner,
                    outer,
                    bias,
                    has_fp16_weights=config.llm_int8_has_fp16_weight,
                    threshold=config.llm_int8_threshold,
                )
            else:
                new = self._bnb.nn.Linear4bit(
                    inner,
                    outer,
                    bias,
                    config.bnb_4bit_compute_dtype,
                    compress_statistics=config.bnb_4bit_use_double_quant,
                    quant_type=config.bnb_4bit_quant_type,
                    quant_storage=config.bnb_4bit_quant_storage,
                )
                if outer % 32 or inner % 64:
                    new.support_avx512bf16_for_cpu = False  # its packed form, which fails for such sizes
                new._register_state_dict_hook(_mend_scales)
        new.source_cls = type(layer)
        new.requires_grad_(False)
        new.bias = layer.bias
        if not layer.weight.is_meta:
            self._quantize(new, layer.weight.detach())
        swapped: nn.Module = new.train(layer.training)
        return swapped

    def _quantize(self, layer: Any, weight: Tensor) -> None:
        """Quantize a full-precision weight, (in, out) if it was a Conv1D's, into its layer."""
        weight = weight.t() if layer.source_cls is Conv1D else weight
        check_weight_shape(weight, layer)
        old, weight = layer.weight, weight.contiguous()
        if isinstance(layer, self._bnb.nn.Linear8bitLt):
            keeps = old.has_fp16_weights
            new = self._bnb.nn.Int8Params(weight.clone() if keeps else weight, False, has_fp16_weights=keeps)
        else:
            new = self._bnb.nn.Params4bit(
                weight,
                requires_grad=False,
                compress_statistics=old.compress_statistics,
                quant_type=old.quant_type,
                quant_storage=old.quant_storage,
                module=layer,
            )
        layer.weight = new.to("cpu")

    def _load_4bit_codes(self, layer: Any, codes: Tensor, statistics: dict[str, Tensor]) -> None:
        layer.weight = self._bnb.nn.Params4bit.from_prequantized(
            data=codes, quantized_stats=statistics, requires_grad=False, device="cpu", module=layer
        )

    def _load_8bit_codes(self, layer: Any, codes: Tensor, statistics: dict[str, Tensor]) -> None:
        scales = statistics["SCB"]
        layer.weight = self._bnb.nn.Int8Params(codes, False, has_fp16_weights=False, CB=codes, SCB=scales)


def _mend_scales(layer: Any, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Put the scales of a layer that has run in order, in the layer and its state.

    On some processors bitsandbytes packs codes and scales when it first runs. To save them it unpacks the codes, but
    version 0.50 leaves scales that are not quantized themselves as (in / block, out).
    """
    statistics = layer.weight.quant_state
    if statistics is not None and statistics.absmax.dim() == 2:
        statistics.absmax = statistics.absmax.t().float().reshape(-1)
        state[f"{prefix}weight.absmax"] = statistics.absmax


def _statistics(source: TensorSource, key: str, four: bool) -> dict[str, Tensor]:
    """The statistics of the codes under `key` in a checkpoint; empty for a weight in full precision."""
    prefix = f"{key}." if four else key.removesuffix("weight")
    names = [name for name in list(source.keys()) if name.startswith(prefix) and (four or name == f"{prefix}SCB")]
    return {name.removeprefix(prefix) if not four else name: source.tensor(name) for name in names}
