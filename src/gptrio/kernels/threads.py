"""Torch operations that run on one thread, without a word to anyone else about how many threads torch has.

The threads of torch's OpenMP spin for milliseconds after an operation that they shared, where the threads of a compiled
step want to run. `torch.set_num_threads` is for the whole process: a thread of Python that first uses torch meanwhile
would keep the small number for good. OpenMP's own setting belongs to the thread that makes it.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import torch


class OneThread:
    """A context in which torch's operations do not leave the Python thread that enters it.

    It is for operations of this package alone, never around a call of the user's. Where torch has another back end than
    an OpenMP that can be told, nothing happens.
    """

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        setter = _setter()
        if setter is not None and self._before > 1:
            setter(1)

    def __exit__(self, *_: object) -> None:
        setter = _setter()
        if setter is not None and self._before > 1:
            setter(self._before)


@functools.cache
def _setter() -> Callable[[int], Any] | None:
    """OpenMP's setter of this thread's number, if torch goes by it; tried in a thread that ends then."""
    try:
        setter = ctypes.PyDLL(None).omp_set_num_threads
    except (OSError, AttributeError, TypeError):
        return None
    setter.argtypes, setter.restype = [ctypes.c_int], None
    seen: list[int] = []

    def attempt() -> None:
        torch.get_num_threads()  # which makes torch set this thread's number, once
        for number in (3, 1):
            setter(number)
            seen.append(torch.get_num_threads())

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return setter if seen == [3, 1] else None
