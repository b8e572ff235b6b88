"""Linear layers and embeddings whose weights have 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from gptrio.errors import SizeMismatchError
from gptrio.kernels import formats as codes
from gptrio.kernels.quantized import quantized_linear
from gptrio.nn.fast_call import Embedding
from gptrio.nn.linear import LINEARS, Conv1D, WeightView, filled_linear, weight_view
from gptrio.quantization.config import Int4Config, Int8Config
from gptrio.quantization.modules import check_weight_shape, full_precision_modules, replace_module, tied_head


class _QuantizedWeight(nn.Module):
    """Codes and scales, neither of which is converted when the dtype of the model changes.

    Attributes:
        weight: int8 (out, in), or uint8 (out, in / 2) for 4 bits.
        weight_scale: float32 (out,), or bfloat16 (out, in / group) for 4 bits.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, outer: int, inner: int, group: int | None) -> None:
        super().__init__()
        self.group = group
        self.out_features, self.in_features = outer, inner
        self.transposed = False  # whether full-precision weights come as (in, out)
        if group is None:
            self.register_buffer("weight", torch.empty(outer, inner, dtype=torch.int8, device="meta"))
            self.register_buffer("weight_scale", torch.empty(outer, dtype=torch.float32, device="meta"))
        else:
            scale = torch.empty(outer, inner // group, dtype=torch.bfloat16, device="meta")
            self.register_buffer("weight", torch.empty(outer, inner // 2, dtype=torch.uint8, device="meta"))
            self.register_buffer("weight_scale", scale)

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 8 if self.group is None else 4

    @torch.no_grad()
    def quantize_(self, weight: Tensor) -> None:
        """Quantize a full-precision weight, (in, out) if `transposed`.

        Raises:
            SizeMismatchError: it has another shape than this layer.
        """
        weight = weight.t().contiguous() if self.transposed else weight
        check_weight_shape(weight, self)
        if self.group is None:
            self.weight, self.weight_scale = codes.quantize_int8(weight)
        else:
            self.weight, self.weight_scale = codes.quantize_int4(weight, self.group)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (out, in) that the codes stand for."""
        function = codes.dequantize_int8 if self.group is None else codes.dequantize_int4
        return function(self.weight, self.weight_scale, dtype)

    @torch.no_grad()
    def set_rows(self, kept: int, new: Tensor | None) -> None:
        """Keep the codes of the first outputs, and append new ones.

        Args:
            kept: number of outputs that stay.
            new: (more, in) in full precision, quantized now, or None.
        """
        pairs = [(self.weight[:kept], self.weight_scale[:kept])]
        if new is not None:
            pairs.append(codes.quantize_int8(new) if self.group is None else codes.quantize_int4(new, self.group))
        weights, scales = zip(*pairs, strict=True)
        device = self.weight.device
        self.weight = torch.cat([part.to(device) for part in weights])
        self.weight_scale = torch.cat([part.to(device) for part in scales])
        self.out_features = len(self.weight)

    def load_codes(self, name: str, tensor: Tensor) -> None:
        """Store codes ("weight") or scales ("weight_scale") of a checkpoint unchanged.

        Raises:
            SizeMismatchError: they are of another type or shape than this layer's.
        """
        own = getattr(self, name)
        if tensor.shape != own.shape or tensor.dtype != own.dtype:
            raise SizeMismatchError(
                f"{name} of a quantized layer is {tensor.dtype} {tuple(tensor.shape)} in the checkpoint, "
                f"{own.dtype} {tuple(own.shape)} in the model; load it with the configuration it was saved with"
            )
        setattr(self, name, tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        scale = self.weight_scale
        apply: Callable[..., Any] = super()._apply
        apply(fn, recurse)
        if not scale.is_meta:
            self.weight_scale = scale.to(self.weight.device)
        return self


class QuantizedLinear(_QuantizedWeight):
    """A linear layer with a weight of 8 or 4 bits, in place of `nn.Linear` or `Conv1D`.

    Args:
        layer: the layer it replaces; unless on the meta device, its weight is quantized now. The bias is kept.
        group: inputs that share a scale of 4 bits, or None for 8 bits.
    """

    def __init__(self, layer: nn.Linear | Conv1D, group: int | None) -> None:
        view = weight_view(layer)
        super().__init__(view.outputs, view.inputs, group)
        self.transposed = view.is_in_out
        self.train(layer.training)
        self.bias = layer.bias
        if not layer.weight.is_meta:
            self.quantize_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return quantized_linear(x, self.weight, self.weight_scale, self.bias, bits=self.bits)

    def weight_view(self) -> WeightView:
        """How the weight is stored: codes and scales."""
        return WeightView(self.weight, self.bias, scale=self.weight_scale, group=self.group)

    def extra_repr(self) -> str:
        """Sizes, for `repr`."""
        group = "" if self.group is None else f", group_size={self.group}"
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}{group}"


class QuantizedEmbedding(_QuantizedWeight):
    """An embedding with rows of 8 bits, for models whose head shares them.

    Args:
        embedding: the embedding it replaces; unless on the meta device, its weight is quantized now.
    """

    dtype_reference: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        outer, inner = embedding.weight.shape
        super().__init__(outer, inner, None)
        self.register_buffer("dtype_reference", torch.ones((), dtype=embedding.weight.dtype), persistent=False)
        self.embedding_dim = inner
        self.train(embedding.training)
        if not embedding.weight.is_meta:
            self.quantize_(embedding.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Look ids (...) up: (..., width) in the model's dtype; IndexError for an id outside the table."""
        rows = nn.functional.embedding(ids, self.weight)
        return (rows * nn.functional.embedding(ids, self.weight_scale.unsqueeze(1))).to(self.dtype_reference.dtype)

    @property
    def num_embeddings(self) -> int:
        """Number of rows."""
        return self.out_features

    def extra_repr(self) -> str:
        """Sizes, for `repr`."""
        return f"{self.num_embeddings}, {self.embedding_dim}, bits=8"


class NativeQuantizer:
    """Quantizes linear layers to int8 or int4, while a checkpoint streams in or in a built model."""

    ignore_missing: tuple[str, ...] = (r"\.weight_scale$",)
    ignore_unexpected: tuple[str, ...] = ()
    default_dtype: torch.dtype | None = None
    is_trainable = is_qat_trainable = False

    def __init__(self, config: Int8Config | Int4Config) -> None:
        self.config = config

    @property
    def quantization_config(self) -> Int8Config | Int4Config:
        """How it quantizes."""
        return self.config

    def prepare(self, model: nn.Module) -> None:
        """Swap the layers of a model; weights that are not on the meta device are quantized at once."""
        head, owner = tied_head(model), cast(Any, model)
        skipped = (*full_precision_modules(model), *(self.config.modules_to_not_convert or ()))
        for name, layer in list(model.named_modules()):
            if not isinstance(layer, LINEARS) or _is_named(name, skipped):
                continue
            if layer is head:
                table = owner.get_input_embeddings()
                path = next(path for path, module in model.named_modules() if module is table)
                replace_module(model, path, QuantizedEmbedding(table))
                replace_module(model, name, QuantizedLinear(_without_weight(layer), None))
            else:
                replace_module(model, name, QuantizedLinear(layer, self._group(layer)))
        owner.is_quantized = True
        if hasattr(model, "config"):
            owner.config.quantization_config = self.config.to_dict()

    def load_tensor(self, model: nn.Module, name: str, tensor: Tensor, key: str = "", source: object = None) -> bool:
        """Load a checkpoint's tensor, full precision or codes, if its layer is quantized; else return False."""
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if leaf not in ("weight", "weight_scale") or not isinstance(owner, _QuantizedWeight):
            return False
        if leaf == "weight" and tensor.is_floating_point():
            owner.quantize_(tensor)
        else:
            owner.load_codes(leaf, tensor)
        return True

    def finish(self, model: nn.Module) -> None:
        """Share the codes of the embedding with a tied head."""
        head = tied_head(model)
        if isinstance(head, QuantizedLinear):
            table = cast(Any, model).get_input_embeddings()
            head.weight, head.weight_scale = table.weight, table.weight_scale

    @torch.no_grad()
    def dequantize(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Put layers in full precision in place of the quantized ones; the model ties them again."""
        for name, layer in list(model.named_modules()):
            if isinstance(layer, QuantizedEmbedding):
                table = Embedding(layer.num_embeddings, layer.embedding_dim, _weight=layer.dequantized(dtype))
                replace_module(model, name, table.train(layer.training))
            elif isinstance(layer, QuantizedLinear):
                plain = filled_linear(layer.dequantized(dtype), layer.bias, layer.transposed)
                replace_module(model, name, plain.train(layer.training))

    def _group(self, layer: nn.Linear | Conv1D) -> int | None:
        """Group size of a layer, or None for 8 bits."""
        if isinstance(self.config, Int8Config):
            return None
        group = self.config.group_size
        return None if weight_view(layer).inputs % max(group, codes.UNIT) else group


def _without_weight(layer: nn.Linear | Conv1D) -> nn.Linear:
    """A layer of the same shape, with the bias, and without storage for the weight."""
    outer, inner = layer.weight.shape
    empty = nn.Linear(inner, outer, bias=False, device="meta")
    empty.bias = layer.bias
    return empty.train(layer.training)


def _is_named(name: str, names: tuple[str, ...]) -> bool:
    return any(name == other or name.endswith(f".{other}") or name.startswith(f"{other}.") for other in names)
