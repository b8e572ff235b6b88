"""Run torch operations on one thread, without changing the number of threads for anyone else.

After an operation, torch's OpenMP threads spin for milliseconds on the cores that the threads of a compiled step need.
`torch.set_num_threads` changes the whole process: another Python thread that first uses torch in the meantime would
keep the small number. OpenMP's own setting changes the calling thread only.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


class OneThread:
    """A context in which torch's operations do not leave the Python thread that enters it.

    For operations of this package only, never around a call of the user's. It has no effect unless torch's threads
    belong to an OpenMP library that can be configured.
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


_AS_IT_IS = nullcontext()


def yielding_to(threads: int) -> AbstractContextManager[None]:
    """`OneThread` where a compiled step runs on several threads; else a context without effect."""
    return OneThread() if threads > 1 else _AS_IT_IS


@functools.cache
def _setter() -> Callable[[int], Any] | None:
    """OpenMP's function that sets the calling thread's number, if torch obeys it; tested in a temporary thread."""
    try:
        setter = ctypes.PyDLL(None).omp_set_num_threads
    except (OSError, AttributeError, TypeError):
        return None
    setter.argtypes, setter.restype = [ctypes.c_int], None
    seen: list[int] = []

    def attempt() -> None:
        torch.get_num_threads()  # torch sets the thread's number itself at its first use
        for number in (3, 1):
            setter(number)
            seen.append(torch.get_num_threads())

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return setter if seen == [3, 1] else None
