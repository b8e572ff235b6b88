"""A decoding step compiled for this processor by numba: one call, a few threads, weights read where they lie."""

from __future__ import annotations

import functools
import importlib.util
import os

MAX_ROWS, MAX_ROWS_AMX = 8, 32  # with more rows, whole matrix products are faster


class Reason(str):
    """Why an optimisation is not used, as a sentence."""

    __slots__ = ()


NOT_INSTALLED = Reason("numba is not installed, or the system is not a POSIX one")


@functools.cache
def is_installed() -> bool:
    """Whether numba is there, and the system has what the threads need; numba itself is not imported."""
    try:
        found = importlib.util.find_spec("numba") is not None
    except ValueError:  # another object was imported under this name
        found = False
    return os.name == "posix" and found


def check_numba() -> None:
    """Import numba.

    Raises:
        Exception: it cannot be imported, for any reason that it has, or NUMBA_DISABLE_JIT is set.
    """
    import numba

    if numba.config.DISABLE_JIT:
        raise RuntimeError("numba is told not to compile (NUMBA_DISABLE_JIT)")


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
