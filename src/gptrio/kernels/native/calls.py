"""The C kernels as calls on contiguous CPU tensors."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from gptrio.kernels.native.library import native

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ACTIVATIONS = {"none": 0, "relu": 1, "gelu_tanh": 2, "gelu_erf": 3}


def native_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, activation: str, residual: Tensor | None
) -> Tensor:
    """Run a product of few rows; `x` (..., in), `weight` (out, in) or (in, out), all of one dtype."""
    rows, inner, width, x = _sizes(x, weight.shape[1 if transposed else 0])
    out = x.new_empty((*x.shape[:-1], width))
    _library().gptrio_linear(
        _DTYPES[x.dtype],
        transposed,
        *_pointers(x, weight, bias, residual, out),
        rows,
        width,
        inner,
        _ACTIVATIONS[activation],
        torch.get_num_threads(),
    )
    return out


def native_quantized(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    bits: int,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """Run a product of few rows with an int8 or int4 weight, quantizing 64 values of `x` at a time.

    Args:
        x: (..., in), a multiple of 64.
        weight: int8 (out, in), or uint8 (out, in / 2) as `kernels.quantized` packs it.
        scale: float32 (out,), or float16 (out, in / group).
        bias: (out,) of x's dtype, or None.
        bits: 8 or 4.
        activation: applied to the product.
        residual: (..., out) of x's dtype, added at the end, or None.
    """
    rows, inner, width, x = _sizes(x, weight.shape[0])
    out = x.new_empty((*x.shape[:-1], width))
    _library().gptrio_quantized(
        bits,
        _DTYPES[x.dtype],
        *_pointers(x, weight, scale, bias, residual, out),
        rows,
        width,
        inner,
        64 if bits == 8 else inner // scale.shape[1],
        _ACTIVATIONS[activation],
        torch.get_num_threads(),
    )
    return out


def native_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each row of x (..., in), a multiple of 16: int8 (rows, in) and float32 (rows,)."""
    rows, inner, _, x = _sizes(x, 0)
    values, scales = torch.empty(rows, inner, dtype=torch.int8), torch.empty(rows)
    pointers = _pointers(x, values, scales)
    _library().gptrio_quantize(_DTYPES[x.dtype], *pointers, rows, inner, inner, torch.get_num_threads())
    return values, scales


def native_rescale(
    sums: Tensor,
    x_scale: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    out: Tensor,
) -> None:
    """Turn int32 sums (rows, out) into results in `out` (..., out)."""
    rows, width = sums.shape
    pointers = _pointers(sums, x_scale, scale, bias, residual, out)
    threads = torch.get_num_threads()
    _library().gptrio_rescale(_DTYPES[out.dtype], *pointers, rows, width, _ACTIVATIONS[activation], threads)


def _library() -> ctypes.CDLL:
    library = native().library
    assert library is not None
    return library


def _sizes(x: Tensor, width: int) -> tuple[int, int, int, Tensor]:
    inner = x.shape[-1]
    return x.numel() // inner, inner, width, x.contiguous()


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]
