"""Memory-mapped tensors leave this process's memory once something else holds what they say."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable
from typing import Any

import torch

_UNCHANGED = (0, 1, 5)  # bits 61 to 63 of a page's entry: not there, or of a file and as the file has it


def release_pages(tensor: torch.Tensor) -> None:
    """Take the pages of a memory-mapped tensor out of this process's memory; reading brings them back.

    Linux counts the mapped pages of a file as memory of the one process that maps them, so they would count beside the
    converted, quantized or packed copy that was made of them. Tensors that are not mapped, or were written to since,
    stay as they are; so does everything where the system does not tell.
    """
    advise = _madvise()
    if advise is None or not tensor.is_cpu or not tensor.is_contiguous():
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE)
    count = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE - first
    if count > 0 and _are_as_in_the_file(first, count):
        advise(first * mmap.PAGESIZE, count * mmap.PAGESIZE, mmap.MADV_DONTNEED)


@functools.cache
def _madvise() -> Callable[[int, int, int], Any] | None:
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def _are_as_in_the_file(first: int, count: int) -> bool:
    """Whether none of these pages of memory has content of its own."""
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(8 * first)
            entries = torch.frombuffer(bytearray(file.read(8 * count)), dtype=torch.int64)
    except (OSError, ValueError):
        return False
    kinds = (entries >> 61) & 7
    return len(kinds) == count and bool(torch.isin(kinds, torch.tensor(_UNCHANGED, device=kinds.device)).all())
