"""Products of 16 bits on a processor that has none: in float32, with the result rounded once.

torch multiplies them number by number there, up to a hundred times slower than float32. Operands are widened instead,
weights part by part; a result is never less exact, and has the dtype that it would have had.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptrio.kernels.packing import can_pack
from gptrio.kernels.recompute import is_watched

_PART = 1 << 19  # elements of a weight that are converted at a time
_LEAST_ROWS = 4  # for which emulated products of a weight (out, in) of 16 bits cost more than widening it

can_pack_cached = functools.cache(can_pack)


def bfloat16_instructions() -> list[str]:
    """The instructions by which this processor multiplies bfloat16, of AMX (tiles) and AVX512-BF16 (vectors)."""
    tests = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}
    return [name for name, test in tests.items() if getattr(torch.cpu, test, lambda: False)()]


def is_emulated(dtype: torch.dtype) -> bool:
    """Whether weights have 16 bits and the processor has no products of them: torch computes number by number."""
    return dtype.itemsize == 2 and not can_pack_cached(dtype)


@functools.cache
def has_no_instructions(dtype: torch.dtype) -> bool:
    """Whether a dtype has 16 bits and the processor no instructions for it; oneDNN may have a fast way around."""
    is_x86_bfloat16 = dtype is torch.bfloat16 and platform.machine().lower() in ("x86_64", "amd64")
    return is_emulated(dtype) or (is_x86_bfloat16 and not bfloat16_instructions())


def result_dtype(x: Tensor) -> torch.dtype:
    """Dtype of a linear layer's result for an input on the CPU: that of autocast, if it is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def is_widened(*tensors: Tensor | None) -> bool:
    """Whether a product of these plain tensors on a CPU, of 16 bits, is to be computed in float32."""
    given = [x for x in tensors if x is not None]
    return (
        (given[0].dtype.itemsize == 2 or torch.is_autocast_enabled("cpu"))
        and all(type(x) in (Tensor, nn.Parameter) and x.is_cpu and x.is_floating_point() for x in given)
        and has_no_instructions(result_dtype(given[0]))
        and (torch.is_autocast_enabled("cpu") or all(x.dtype is given[0].dtype for x in given))
        and not is_watched()
    )


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b`, differentiable."""
    if not is_widened(a, b):
        return a @ b
    dtype = result_dtype(a)
    with torch.autocast("cpu", enabled=False):
        return (a.float() @ b.float()).to(dtype)


def gains(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> bool:
    """Whether `linear` takes a call without gradients: its product is emulated, and takes longer than widening."""
    if x.dtype is torch.float32 and not torch.is_autocast_enabled("cpu"):  # nearly every call
        return False
    is_large = transposed or weight.dtype is torch.float32 or x.numel() >= _LEAST_ROWS * x.shape[-1]
    return is_large and x.numel() > 0 and x.shape[-1] == weight.shape[-1 - transposed] and is_widened(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`x @ W.T + bias` in float32, rounded once.

    Args:
        x: (..., in).
        weight: (out, in), of 16 or 32 bits.
        bias: (out,) or None.
        dtype: of the result.

    Returns:
        (..., out).
    """
    with torch.autocast("cpu", enabled=False):
        if weight.dtype is torch.float32:
            return F.linear(x.float(), weight, None if bias is None else bias.float()).to(dtype)
        return product_by_parts(x, len(weight), lambda part: weight[part].float(), torch.float32, bias).to(dtype)


def product_by_parts(
    x: Tensor, outputs: int, weight_of: Callable[[slice], Tensor], dtype: torch.dtype, bias: Tensor | None = None
) -> Tensor:
    """`x @ W.T + bias` in another dtype, rounded once, converting as many rows of W at a time as stay in the cache.

    Args:
        x: (..., in).
        outputs: rows of W.
        weight_of: some rows of W in `dtype`.
        dtype: to multiply in.
        bias: (outputs,) or None.

    Returns:
        (..., outputs) of x's dtype.
    """
    rows, step = x.reshape(-1, x.shape[-1]).to(dtype), max(1, _PART // x.shape[-1])
    out = x.new_empty(len(rows), outputs)
    for start in range(0, outputs, step):
        part = slice(start, start + step)
        out[:, part] = F.linear(rows, weight_of(part), None if bias is None else bias[part].to(dtype))
    return out.view(*x.shape[:-1], outputs)
