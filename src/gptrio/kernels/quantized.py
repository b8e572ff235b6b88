"""Weights of 8 and 4 bits: how values become codes, and how a product with them is run.

int8: one float32 scale per output, codes in [-127, 127].
int4: one float16 scale per `group` inputs of an output, codes in [-8, 7]. Two codes share a byte: byte j of each 32
holds, plus 8, elements j (low half) and j + 32 (high half) of a unit of 64 inputs.

With int8 weights the rows of x become int8 too, a row to a scale, and run on the processor's int8 units through torch.
Where these are missing, the weight is taken back to x's dtype.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.errors import OptionError

UNIT = 64  # inputs that the kernels handle at a time
GROUPS = (32, 64, 128)
_SHRINKS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8)  # int4 scales tried, as shares of the one that fits the largest value
_CHUNK = 1 << 18  # elements that are quantized at a time: what stays in the processor's cache


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize (out, in) to int8 codes (out, in) and float32 scales (out,)."""
    codes, scale = torch.empty(weight.shape, dtype=torch.int8), torch.empty(weight.shape[0])
    for part in _row_slices(weight):
        values = weight[part].detach().float()
        scale[part] = values.abs().amax(dim=1) / 127
        steps = scale[part].clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
        codes[part] = (values / steps).round_().clamp_(-127, 127)
    return codes, scale


def dequantize_int8(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) that int8 codes stand for."""
    return (codes.float() * scale.unsqueeze(1)).to(dtype)


def check_group(group: int, inner: int) -> None:
    """Refuse group sizes that the int4 layout cannot hold.

    Raises:
        OptionError: `group` is not offered, or does not divide the inputs of a layer.
    """
    if group not in GROUPS:
        raise OptionError(f"group_size is {group}; int4 offers {', '.join(map(str, GROUPS))}")
    if inner % max(group, UNIT):
        raise OptionError(f"a layer with {inner} inputs cannot be quantized to int4 in groups of {group}")


def quantize_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Quantize (out, in) to packed codes uint8 (out, in / 2) and float16 scales (out, in / group).

    Each scale is the one of a few candidates with the least squared error; the largest value of a group takes code -8.
    """
    outer, inner = weight.shape
    check_group(group, inner)
    packed = torch.empty(outer, inner // 2, dtype=torch.uint8)
    scale = torch.empty(outer, inner // group, dtype=torch.float16)
    for part in _row_slices(weight):
        values = weight[part].detach().float().reshape(-1, inner // group, group)
        best = _best_scale(values)
        codes = (_codes(values, best) + 8).to(torch.uint8).view(-1, inner // UNIT, 2, UNIT // 2)
        packed[part] = (codes[:, :, 0] | codes[:, :, 1] << 4).flatten(1)
        scale[part] = best.squeeze(2)
    return packed, scale


def _best_scale(values: Tensor) -> Tensor:
    """The scale (N, groups, 1) of least squared error for values (N, groups, group), as float16 holds it."""
    largest = values.gather(2, values.abs().argmax(dim=2, keepdim=True))
    best, error = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    for shrink in _SHRINKS:
        scale = (largest / -8 * shrink).half().float()
        off = (_codes(values, scale).mul_(scale) - values).square_().sum(dim=2, keepdim=True)
        best, error = torch.where(off < error, scale, best), torch.minimum(off, error)
    return best


def _codes(values: Tensor, scale: Tensor) -> Tensor:
    """Nearest codes, as floats; a group of scale 0 has code 0."""
    return (values / torch.where(scale == 0, 1.0, scale)).round_().clamp_(-8, 7)


def _row_slices(weight: Tensor) -> list[slice]:
    step = max(1, _CHUNK // weight.shape[1])
    return [slice(start, start + step) for start in range(0, weight.shape[0], step)]


def dequantize_int4(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) that packed int4 codes stand for."""
    outer, inner = packed.shape[0], packed.shape[1] * 2
    halves = packed.view(outer, inner // UNIT, UNIT // 2)
    codes = torch.stack([halves & 15, halves >> 4], dim=2).view(outer, scale.shape[1], -1)
    return ((codes.to(torch.int8) - 8) * scale.float().unsqueeze(2)).view(outer, inner).to(dtype)


def quantized_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    *,
    bits: int,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Compute `activation(x @ W.T + bias) + residual` with a quantized weight.

    Args:
        x: (..., in).
        codes: int8 (out, in), or uint8 (out, in / 2) for 4 bits.
        scale: float32 (out,), or float16 (out, in / group) for 4 bits.
        bias: (out,) of x's dtype, or None.
        bits: 8 or 4.
        activation: applied to the product.
        residual: (..., out) of x's dtype, added at the end, or None.

    Returns:
        (..., out) of x's dtype.
    """
    if _can_use_int8_units(x, codes):
        rows = x.numel() // x.shape[-1]
        if rows and bits == 8 and int8_products_are_exact():
            return _int8_matrix_product(x, codes, scale, bias, activation, residual)
    weight = dequantize_int8(codes, scale, x.dtype) if bits == 8 else dequantize_int4(codes, scale, x.dtype)
    out = activate(F.linear(x, weight, bias), activation)
    return out if residual is None else out + residual


def activate(x: Tensor, activation: str) -> Tensor:
    """Apply an activation by the name that `linear` takes."""
    if activation == "none":
        return x
    if activation == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def _can_use_int8_units(x: Tensor, codes: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.is_cpu
        and codes.is_cpu
        and not torch.is_grad_enabled()
        and x.shape[-1] % UNIT == 0
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not torch._C._functorch.peek_interpreter_stack()
    )


@functools.cache
def int8_products_are_exact() -> bool:
    """Whether torch multiplies int8 matrices without overflow here: without VNNI, sums of two products may saturate."""
    try:
        left = torch.full((32, 256), 127, dtype=torch.int8)
        right = torch.full((64, 256), -127, dtype=torch.int8)
        return bool((torch._int_mm(left, right.t()) == -127 * 127 * 256).all())
    except RuntimeError:
        return False


def _int8_matrix_product(
    x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).float()
    x_scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    values = (rows / x_scale).round_().to(torch.int8)
    sums = torch._int_mm(values, codes.t()).float() * x_scale * scale
    out = sums if bias is None else sums + bias
    out = activate(out.to(x.dtype), activation).view(*x.shape[:-1], codes.shape[0])
    return out if residual is None else out + residual
