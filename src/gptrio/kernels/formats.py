"""Weights of 8 and 4 bits: how values become codes, and codes values.

int8: one float32 scale per output, codes in [-127, 127].
int4: one bfloat16 scale per `group` inputs of an output, codes in [-8, 7]. Two codes share a byte: byte j of each 32
holds, plus 8, elements j (low half) and j + 32 (high half) of a unit of 64 inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptrio.errors import OptionError
from gptrio.kernels import GROUP_SIZES

UNIT = 64  # inputs whose codes lie together
_SHRINKS = (1.0, 0.92, 0.84)  # int4 scales tried, as shares of the one that fits the largest value
_CHUNK = 1 << 17  # elements that are quantized at a time: what stays in the processor's cache


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize (out, in) to int8 codes (out, in) and float32 scales (out,)."""
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    for part in _row_slices(weight):
        values = weight[part].detach().float()
        scale[part] = values.abs().amax(dim=1) / 127
        steps = scale[part].clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
        codes[part] = (values / steps).round_().clamp_(-127, 127)
    return codes, scale


def dequantize_int8(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) that int8 codes stand for."""
    return codes.float().mul_(scale.unsqueeze(1)).to(dtype)


def check_group(group: int, inner: int) -> None:
    """Refuse group sizes that the int4 layout cannot hold.

    Raises:
        OptionError: `group` is not offered, or does not divide the inputs of a layer.
    """
    if group not in GROUP_SIZES:
        raise OptionError(f"group_size is {group}; int4 offers {', '.join(map(str, GROUP_SIZES))}")
    if inner % max(group, UNIT):
        raise OptionError(f"a layer with {inner} inputs cannot be quantized to int4 in groups of {group}")


def quantize_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Quantize (out, in) to packed codes uint8 (out, in / 2) and bfloat16 scales (out, in / group).

    The largest value of a group takes code -8, or is cut off where that leaves a smaller squared error.
    """
    outer, inner = weight.shape
    check_group(group, inner)
    packed = torch.empty(outer, inner // 2, dtype=torch.uint8, device=weight.device)
    scale = torch.empty(outer, inner // group, dtype=torch.bfloat16, device=weight.device)
    for part in _row_slices(weight):
        values = weight[part].detach().float().reshape(-1, inner // group, group)
        best = _best_scale(values)
        codes = (_codes(values, best) + 8).to(torch.uint8).view(-1, inner // UNIT, 2, UNIT // 2)
        packed[part] = (codes[:, :, 0] | codes[:, :, 1] << 4).flatten(1)
        scale[part] = best.squeeze(2)
    return packed, scale


def _best_scale(values: Tensor) -> Tensor:
    """The scale (N, groups, 1) of least squared error for values (N, groups, group), as bfloat16 holds it.

    Codes c that some scale gives for values v are best read with the scale c.v / c.c, which leaves v.v - (c.v)^2 / c.c.
    """
    low, high = values.amin(dim=2, keepdim=True), values.amax(dim=2, keepdim=True)
    largest = torch.where(high > -low, high, low)
    best, most = torch.zeros_like(largest), torch.zeros_like(largest)
    for shrink in _SHRINKS:
        found = _codes(values, largest * (shrink / -8))
        squares = torch.linalg.vector_norm(found, dim=2, keepdim=True).square_().clamp_(min=1)
        products = found.mul_(values).sum(dim=2, keepdim=True)
        gain = products.square().div_(squares)
        best, most = torch.where(gain > most, products.div_(squares), best), torch.maximum(gain, most)
    return best.bfloat16().float()


def _codes(values: Tensor, scale: Tensor) -> Tensor:
    """Nearest codes, as floats; a group of scale 0 has code 0."""
    return (values / torch.where(scale == 0, 1.0, scale)).round_().clamp_(-8, 7)


def _row_slices(weight: Tensor) -> list[slice]:
    step = max(1, _CHUNK // weight.shape[1])
    return [slice(start, start + step) for start in range(0, weight.shape[0], step)]


def dequantize_int4(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) that packed int4 codes stand for."""
    outer, groups = scale.shape
    work = torch.float32 if dtype is torch.float16 else dtype  # whose range holds every scale
    codes = _halves(packed).view(torch.int8).sub_(8).view(outer, groups, -1)
    return (codes.to(work) * scale.to(work).unsqueeze(2)).view(outer, -1).to(dtype)


def unpack_int4(packed: Tensor) -> Tensor:
    """Codes of (out, in / 2) bytes, plus 8: int32 (out, in)."""
    return _halves(packed).int()


def _halves(packed: Tensor) -> Tensor:
    """Codes of (out, in / 2) bytes, plus 8: uint8 (out, in)."""
    units = packed.view(packed.shape[0], -1, UNIT // 2)
    return torch.stack([units & 15, units >> 4], dim=2).view(packed.shape[0], -1)
