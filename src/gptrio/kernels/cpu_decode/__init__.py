"""A decoding step compiled for this processor by numba: one call, a few threads, weights read where they lie."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os

MAX_ROWS, MAX_ROWS_AMX = 8, 32  # with more rows, whole matrix products are faster


_log = logging.getLogger("gptrio")


class Reason(str):
    """Why steps do not run compiled, as a sentence."""

    __slots__ = ()


@functools.cache
def is_installed() -> bool:
    """Whether numba is there, and the system has what the threads need; numba itself is not imported."""
    try:
        found = importlib.util.find_spec("numba") is not None
    except ValueError:  # something else stands in its place
        found = False
    return os.name == "posix" and found


@functools.cache
def is_ready() -> bool:
    """Whether steps run compiled here; compiles them, or reads them from the disk, where numba is installed."""
    if not is_installed():
        return False
    try:
        _prepare()
    except Exception as error:  # numba is the user's own: whatever it dies of, there is the plain way
        _log.warning("decoding goes on without compiled steps: %s", one_line(error))
        return False
    return True


def check_numba() -> None:
    """Import numba.

    Raises:
        Exception: it cannot be imported, for any reason that it has, or is told not to compile.
    """
    import numba

    if numba.config.DISABLE_JIT:
        raise RuntimeError("numba is told not to compile (NUMBA_DISABLE_JIT)")


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _prepare() -> None:
    """Compile the step, or read it from the disk.

    Raises:
        Exception: it cannot be compiled, kept or run, for any reason that numba or the processor has.
    """
    check_numba()
    from gptrio.kernels.cpu_decode.step import prepare

    prepare()
