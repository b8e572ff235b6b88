"""Less memory and time while models load: no cyclic garbage collection, and no pages of files that were copied."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_UNCHANGED = (0, 1, 5)  # bits 61 to 63 of a page's entry: absent, or an unchanged page of a file


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable the cyclic garbage collector: its passes over all of torch cost more than importing or loading does."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def drop_mapped_pages(tensor: Tensor) -> None:
    """Release the pages of a memory-mapped tensor after its data has been copied elsewhere; reading maps them again.

    Linux counts the mapped pages of a file as memory of the one process that maps them, so they would count beside the
    converted, quantized or packed copy that was made of them. Nothing is released of tensors that are not mapped or
    were written to, nor where the system has no list of pages.
    """
    import mmap

    advise = _madvise()
    if advise is None or not tensor.is_cpu or not tensor.is_contiguous():
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE)
    count = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE - first
    if count > 0 and _are_unchanged(first, count):
        advise(first * mmap.PAGESIZE, count * mmap.PAGESIZE, mmap.MADV_DONTNEED)


@functools.cache
def _madvise() -> Callable[[int, int, int], Any] | None:
    if sys.platform != "linux":
        return None
    import ctypes

    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def _are_unchanged(first: int, count: int) -> bool:
    """Whether all of these pages of memory are absent or unchanged pages of a file."""
    import numpy as np

    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(8 * first)
            entries = np.frombuffer(file.read(8 * count), dtype=np.int64)
    except (OSError, ValueError):
        return False
    kinds = (entries >> 61) & 7
    return len(kinds) == count and bool(np.isin(kinds, _UNCHANGED).all())
