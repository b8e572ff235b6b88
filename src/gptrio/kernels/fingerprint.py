"""A number that tells whether a tensor still holds the very bytes that it held before.

Every byte counts, and so does its place: memory is read as 64-bit words, each is multiplied by the random odd number of
its place in a row, and the products of a row are added modulo 2 ** 64; the sums of all rows, in order, are the
fingerprint. One changed word is always seen, for odd numbers have inverses. The low bits of a sum know only the low
bits of the words, which are alike in floats as plain as 1.0 and 2.0, so memory is read twice, the second time from its
fifth byte on: what stood in the upper half of a word then stands in the lower one. Other edits go unseen with a chance
of less than 2 ** -30 even among such plain floats, and of about 2 ** -60 among trained weights.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

_ROW = 1 << 10  # words of a row, whose multipliers stay in the processor's first cache
_STARTS = (0, 4)  # bytes at which reading starts


def fingerprint(tensor: Tensor) -> Tensor:
    """(n,) int64 for the bytes of a tensor on the CPU, in the order of memory where nothing lies between them.

    Args:
        tensor: of any shape and dtype.
    """
    tensor = tensor.detach()
    if not (tensor.is_contiguous() or (tensor.dim() == 2 and tensor.t().is_contiguous())):
        tensor = tensor.contiguous()
    address, size = tensor.data_ptr(), tensor.nbytes
    sums = [_sums(address + start, (size - start) // 8) for start in _STARTS if size >= start + 8]
    rest = min(size, 8)
    return torch.cat([*sums, _view(address + size - rest, rest, torch.uint8).long()])


def _sums(address: int, count: int) -> Tensor:
    """Sums of the rows that start at an address and have so many words; the last one may be shorter."""
    words, multipliers = _view(address, count, torch.int64), _multipliers()
    rows, rest = divmod(count, _ROW)
    whole = words[: rows * _ROW].view(rows, _ROW) @ multipliers
    return torch.cat([whole, (words[rows * _ROW :] @ multipliers[:rest]).view(1)])


def _view(address: int, count: int, dtype: torch.dtype) -> Tensor:
    """Memory at any address, aligned or not, as a tensor (count,)."""
    if count == 0:
        return torch.empty(0, dtype=dtype, device="cpu")
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype)


@functools.cache
def _multipliers() -> Tensor:
    """(1024,) random odd numbers, the same in every process."""
    with torch.inference_mode(False):
        generator = torch.Generator("cpu").manual_seed(0)
        low, high = -(2**63), 2**63 - 1
        return torch.randint(low, high, (_ROW,), generator=generator, dtype=torch.int64, device="cpu").bitwise_or_(1)
