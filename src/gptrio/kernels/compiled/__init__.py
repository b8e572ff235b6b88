"""A decoding step compiled for this processor by numba: one call, a few threads, weights read where they lie."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os

MOST_ROWS, MOST_ROWS_BY_TILES = 8, 32  # with more rows, whole matrix products are faster


@functools.cache
def is_installed() -> bool:
    """Whether numba is there, and the system has what the threads need."""
    return os.name == "posix" and importlib.util.find_spec("numba") is not None


@functools.cache
def is_ready() -> bool:
    """Whether steps run compiled here; compiles them, or reads them from the disk, where numba is installed."""
    if not is_installed():
        return False
    try:
        from gptrio.kernels.compiled.step import prepare

        prepare()
    except (ImportError, RuntimeError) as error:  # another numpy than numba's, or no folder to keep compiled code in
        logging.getLogger("gptrio").warning("going on without compiled decoding: %s", error)
        return False
    return True
