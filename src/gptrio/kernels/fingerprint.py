"""Numbers that show whether a tensor still has exactly the same bytes.

Every byte counts, and so does its position: memory is read as rows of 1,024 bytes, and each row is multiplied by random
numbers without zeros. These integers, in order, are the fingerprint. One changed value is always seen. How rows are
multiplied depends on the processor, so that it takes as long as reading the memory does, or little longer:

- as signed bytes by a matrix of 8 columns, if there are instructions for it. Edits of several bytes of a row go unseen
  if all 8 columns cancel, with a chance of about 126 ** -8 = 2 ** -56;
- as words of 64 bits by odd numbers, and their upper halves by others, both modulo 2 ** 64. The upper halves are there
  for edits of the upmost bits, whose products have few bits left. Edits of several words of a row go unseen if both
  sums cancel, with a chance of 2 ** -32 at most.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import pad

from gptrio.kernels.operators import has_int8_products

_ROW = 1 << 10  # bytes
_WORD = 8  # bytes
_COLUMNS = 8
_LARGEST = 63  # multiplier: a sum of two products with bytes fits into 16 bits, which some processors add in
_AT_ONCE = 1 << 10  # rows whose upper halves are taken at a time, so that they stay in the cache


def fingerprint(tensor: Tensor) -> Tensor:
    """(n, 8) int32 or (n, 2) int64 for the bytes of a tensor on the CPU, in memory's order if nothing lies between.

    Args:
        tensor: of any shape and dtype.
    """
    tensor = tensor.detach()
    if tensor.dim() == 2 and tensor.t().is_contiguous():
        tensor = tensor.t()
    data = tensor.contiguous().reshape(-1).view(torch.int8)
    whole = data.shape[0] // _ROW * _ROW
    rest = pad(data[whole:], (0, whole + _ROW - data.shape[0]))
    product = _product_of_bytes if has_int8_products() else _product_of_words
    return torch.cat([product(data[:whole].view(-1, _ROW)), product(rest[None])])


def _product_of_bytes(rows: Tensor) -> Tensor:
    """(n, 8) int32 of rows (n, 1024) of bytes."""
    if rows.shape[0] == 0:
        return rows.new_empty(0, _COLUMNS, dtype=torch.int32)
    return torch._int_mm(rows, _byte_multipliers())


def _product_of_words(rows: Tensor) -> Tensor:
    """(n, 2) int64 of rows (n, 1024) of bytes."""
    aligned = rows.clone() if rows.storage_offset() % _WORD else rows
    whole, upper = _word_multipliers()
    words = aligned.view(torch.int64)
    sums, halves = words.new_empty(2, len(words)), words.new_empty(min(len(words), _AT_ONCE), words.shape[1])
    for part, of_whole, of_upper in zip(*(each.split(_AT_ONCE) for each in (words, *sums)), strict=True):
        torch.mv(part, whole, out=of_whole)
        torch.mv(torch.bitwise_right_shift(part, 32, out=halves[: len(part)]), upper, out=of_upper)
    return sums.t()


@functools.cache
def _byte_multipliers() -> Tensor:
    """(1024, 8) random int8 from -63 to 63 without 0, the same in every process."""
    with torch.inference_mode(False):
        generator, shape = torch.Generator("cpu").manual_seed(0), (_ROW, _COLUMNS)
        sizes = torch.randint(1, _LARGEST + 1, shape, generator=generator, dtype=torch.int8, device="cpu")
        signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8, device="cpu") * 2 - 1
        return sizes * signs


@functools.cache
def _word_multipliers() -> Tensor:
    """(2, 128) random odd int64, the same in every process."""
    with torch.inference_mode(False):
        generator, least = torch.Generator("cpu").manual_seed(0), torch.iinfo(torch.int64).min
        shape = (2, _ROW // _WORD)
        return torch.randint(least, -(least + 1), shape, generator=generator, dtype=torch.int64, device="cpu") | 1
