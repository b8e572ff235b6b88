"""How a product with a weight of 8 or 4 bits is computed; `formats` describes the codes.

int8: on the CPU the rows of x are quantized to int8 too, each with its own scale: one row runs through fbgemm on packed
codes, more rows as a matrix product of integers if the processor has instructions for it; if not, few rows run one by
one, and for more the weight is dequantized part by part, to float32 where products of x's dtype are emulated.
int4: few rows run in bfloat16 on packed codes, if this version of torch can; for more rows, and otherwise, the weight
is dequantized part by part, to bfloat16 if the processor multiplies it.
Many rows of either: if the processor has tiles for bfloat16 (AMX), dequantizing the weight to bfloat16 costs less than
quantizing x, and is more precise.
Everything else dequantizes the weight to the dtype of x: gradients, compilation, and other devices.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.kernels.formats import dequantize_int4, dequantize_int8, unpack_int4
from gptrio.kernels.linear import activate, activate_, fused_product
from gptrio.kernels.operators import INT4_ROWS, has_int8_products, has_operators
from gptrio.kernels.packing import find
from gptrio.kernels.widened import can_pack_cached, is_emulated, product_by_parts

_INT4_ROWS = 32  # most rows for which the packed int4 call is faster than dequantizing
_INT4_OUTPUTS = 16  # the packed int4 call needs a multiple of this number of outputs
_INT4_BLOCK = 64  # most outputs that it packs together
_PACKED = 1 << 19  # elements of a weight that are packed at a time
_TILED_ROWS = {8: 384, 4: _INT4_ROWS + 1}  # bits -> least rows for which bfloat16 tiles are the fastest
_STEP = 1 << 18  # elements that are dequantized in one step for tiles, so that they stay in the cache
_BLOCK = 1 << 24  # elements of a dequantized weight that are multiplied at a time by tiles
_STEP_DTYPE = {8: torch.float32, 4: torch.bfloat16}  # bits -> dtype by way of which bfloat16 is reached fastest
_LOOPED_ROWS = 16  # most rows that run one by one through fbgemm, without the processor's int8 products
_DEQUANTIZE = {8: dequantize_int8, 4: dequantize_int4}


def quantized_linear(
    x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, *, bits: int, activation: str = "none"
) -> Tensor:
    """Compute `activation(x @ W.T + bias)` with a quantized weight.

    Args:
        x: (..., in).
        codes: int8 (out, in), or uint8 (out, in / 2) for 4 bits.
        scale: float32 (out,), or bfloat16 (out, in / group) for 4 bits.
        bias: (out,) of x's dtype, or None.
        bits: 8 or 4.
        activation: applied to the product.

    Returns:
        (..., out) of x's dtype.
    """
    if x.numel() and _is_cpu_inference(x, codes):
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) >= _TILED_ROWS[bits] and has_bfloat16_tiles():
            out = _tiled_product(rows, codes, scale, bias, bits, activation if x.dtype is torch.bfloat16 else "none")
            activation = "none" if x.dtype is torch.bfloat16 else activation
        else:
            product = _fast_product(rows, codes, scale, bits)
            wide = product.to(torch.promote_types(product.dtype, x.dtype))
            out = wide if bias is None else wide.add_(bias)
        return activate_(out.to(x.dtype).view(*x.shape[:-1], codes.shape[0]), activation)
    return activate(F.linear(x, _DEQUANTIZE[bits](codes, scale, x.dtype), bias), activation)


def has_bfloat16_tiles() -> bool:
    """Whether the processor multiplies bfloat16 matrices in tiles (Intel's AMX), and oneDNN makes use of it."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is not None and bool(supported()) and can_pack_cached(torch.bfloat16)


@functools.cache
def one_row_range() -> int:
    """Bits of an activation in the one-row int8 call that cannot overflow: 8 or 7; 0 if there is no such call."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return 0
    pack = _fbgemm_pack(torch.full((64, 256), -127, dtype=torch.int8, device="cpu"), torch.ones(64))
    x = torch.full((1, 256), 255.0, dtype=torch.float32, device="cpu")
    x[0, 0] = 0.0
    exact: Tensor = torch.ops.quantized.linear_dynamic(x, pack)
    return 8 if bool((exact == -127 * 255 * 255).all()) else 7


def _is_cpu_inference(x: Tensor, codes: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.is_cpu
        and codes.is_cpu
        and not torch.is_grad_enabled()
        and not torch._C._functorch.peek_interpreter_stack()
    )


def _fast_product(rows: Tensor, codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The product (rows, out), in any floating-point dtype."""
    if bits == 4 and len(rows) <= _INT4_ROWS and has_operators(INT4_ROWS):
        return _int4_rows(rows, codes, scale)
    if bits == 8 and len(rows) > 1 and has_int8_products():
        return _int8_matrix_product(rows.float(), codes, scale)
    if bits == 8 and len(rows) <= _LOOPED_ROWS and one_row_range():
        return _int8_rows(rows.float(), codes, scale)
    dtype = torch.float32 if is_emulated(rows.dtype) else rows.dtype
    if bits == 4 and can_pack_cached(torch.bfloat16):
        dtype = torch.bfloat16
    return product_by_parts(rows, len(codes), lambda part: _DEQUANTIZE[bits](codes[part], scale[part], dtype), dtype)


def _tiled_product(
    rows: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, bits: int, activation: str
) -> Tensor:
    """`activation(rows @ W.T + bias)` in bfloat16."""
    x, inner = rows.bfloat16(), rows.shape[1]
    step, size = max(1, _STEP // inner), max(1, _BLOCK // inner)
    biases = [None] * -(-len(codes) // size) if bias is None else torch.split(bias.bfloat16(), size)
    outs = []
    for own, scales, part in zip(torch.split(codes, size), torch.split(scale, size), biases, strict=True):
        weight = x.new_empty(len(own), inner)
        for out, few, steps in zip(*(torch.split(t, step) for t in (weight, own, scales)), strict=True):
            out.copy_(_DEQUANTIZE[bits](few, steps, _STEP_DTYPE[bits]))
        outs.append(fused_product(x, weight, part, activation))
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)


def _int8_rows(rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Each row by itself, as fbgemm takes one scale for all; NaN and infinity, which it loses, are added."""
    pack = find(codes, "fbgemm", lambda: (_fbgemm_pack(codes, scale), codes.nbytes), (scale,))
    few_bits = one_row_range() == 7
    outs = [torch.ops.quantized.linear_dynamic(row, pack, few_bits) for row in torch.split(rows, 1)]
    return torch.cat(outs).add_((rows * 0).sum(dim=1, keepdim=True))


def _fbgemm_pack(codes: Tensor, scale: Tensor) -> Any:
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about a deprecated function that has no successor yet
            zeros = torch.zeros(len(codes), dtype=torch.long, device="cpu")
            weight = torch._make_per_channel_quantized_tensor(codes, scale.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(weight, None)
    finally:
        torch.backends.quantized.engine = engine


def _int8_matrix_product(rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    most = torch.maximum(rows.amax(dim=1, keepdim=True), -rows.amin(dim=1, keepdim=True))
    values = (rows * (127 / most.clamp(min=1e-30))).round_().to(torch.int8)
    return torch._int_mm(values, codes.t()).float().mul_(scale).mul_(most / 127)


def _int4_rows(rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    packed, scales = find(codes, "int4", lambda: _int4_pack(codes, scale), (scale,))
    group = rows.shape[1] // scale.shape[1]
    out = torch._weight_int4pack_mm_for_cpu(rows.bfloat16().contiguous(), packed, group, scales)
    return out[:, : len(codes)]


def _int4_pack(codes: Tensor, scale: Tensor) -> tuple[tuple[Tensor, Tensor], int]:
    """Codes and scales in torch's layout, and their size; made part by part, since each code takes 4 bytes at first."""
    missing = -len(codes) % _INT4_OUTPUTS
    step = max(1, _PACKED // (codes.shape[1] * _INT4_BLOCK)) * _INT4_BLOCK
    packed = codes.new_empty(len(codes) + missing, codes.shape[1])
    for out, part in zip(torch.split(packed, step), torch.split(codes, step), strict=True):
        whole = F.pad(unpack_int4(part), (0, 0, 0, len(out) - len(part)))
        out.copy_(torch._convert_weight_to_int4pack_for_cpu(whole, 1))
    steps = F.pad(scale, (0, 0, 0, missing)).t()  # (groups, out)
    scales = torch.stack([steps, torch.zeros_like(steps)], dim=2)
    return (packed, scales), packed.nbytes + scales.nbytes
