"""Numbers that show whether a tensor still has exactly the same bytes.

Every byte counts, and so does its position: memory is read as rows of 1,024 signed bytes, and each row is multiplied by
a random matrix of 8 columns without zeros. These integers, in order, are the fingerprint. One changed byte is always
seen. Edits of several bytes of a row go unseen if all 8 columns cancel, with a chance of about 126 ** -8 = 2 ** -56.

The product of integers takes as long as reading the memory does, on processors with instructions for it.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import pad

from gptrio.kernels.operators import has_operators

_ROW = 1 << 10  # bytes
_COLUMNS = 8
_LARGEST = 63  # multiplier: a sum of two products with bytes fits into 16 bits, which some processors add in
_AT_ONCE = 1 << 14  # rows that are converted to floats at a time if there is no integer product


def fingerprint(tensor: Tensor) -> Tensor:
    """(n, 8) int32 for the bytes of a tensor on the CPU, in the order of memory where nothing lies between them.

    Args:
        tensor: of any shape and dtype.
    """
    tensor = tensor.detach()
    if tensor.dim() == 2 and tensor.t().is_contiguous():
        tensor = tensor.t()
    data = tensor.contiguous().reshape(-1).view(torch.int8)
    whole = data.shape[0] // _ROW * _ROW
    rest = pad(data[whole:], (0, whole + _ROW - data.shape[0]))
    return torch.cat([_product(data[:whole].view(-1, _ROW)), _product(rest[None])])


def _product(rows: Tensor) -> Tensor:
    """(n, 8) int32 of rows (n, 1024) of bytes; floats of 32 bits hold the sums exactly."""
    if rows.shape[0] == 0:
        return rows.new_empty(0, _COLUMNS, dtype=torch.int32)
    if _has_integer_product():
        return torch._int_mm(rows, _multipliers(torch.int8))
    parts = (rows[start : start + _AT_ONCE] for start in range(0, rows.shape[0], _AT_ONCE))
    return torch.cat([part.float() @ _multipliers(torch.float32) for part in parts]).int()


@functools.cache
def _has_integer_product() -> bool:
    """Whether torch multiplies bytes by the processor's own instructions."""
    return has_operators(("_int_mm",)) and torch.backends.cpu.get_cpu_capability().startswith("AVX")


@functools.cache
def _multipliers(dtype: torch.dtype) -> Tensor:
    """(1024, 8) random integers from -63 to 63 without 0, the same in every process."""
    with torch.inference_mode(False):
        generator, shape = torch.Generator("cpu").manual_seed(0), (_ROW, _COLUMNS)
        sizes = torch.randint(1, _LARGEST + 1, shape, generator=generator, dtype=torch.int8, device="cpu")
        signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8, device="cpu") * 2 - 1
        return (sizes * signs).to(dtype)
