"""GELU of many values in place, compiled for this processor."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from numba import carray

from gptrio.kernels.cpu_decode.llvm_intrinsics import add_and_get, kernel, make_view
from gptrio.kernels.cpu_decode.structs import BFLOAT16, FLOAT32, GELU_ERF, GELU_TANH
from gptrio.kernels.cpu_prefill.vectors import make_activation

_CHUNK = 1 << 14  # values that a thread takes at a time

ACTIVATION = np.dtype(
    [
        ("next", np.int64),  # chunk that is taken next, counted up by all threads
        ("kind", np.int64),  # GELU_TANH or GELU_ERF
        ("x", np.int64),  # address of the values
        ("count", np.int64),  # a multiple of 16
    ],
    align=True,
)
_tasks = make_view(numba.from_dtype(ACTIVATION))


def _make_run(format: int) -> Callable[..., None]:
    """What each thread runs, given the address of an ACTIVATION row, for values of a format."""
    size = 4 if format == FLOAT32 else 2
    by_tanh, by_erf = make_activation(GELU_TANH, format), make_activation(GELU_ERF, format)

    @kernel()
    def run(address):
        task = carray(_tasks(address), (1,))[0]
        start = _CHUNK * (add_and_get(address, 1) - 1)
        while start < task.count:
            count = min(_CHUNK, task.count - start)
            if task.kind == GELU_TANH:
                by_tanh(task.x + size * start, count)
            else:
                by_erf(task.x + size * start, count)
            start = _CHUNK * (add_and_get(address, 1) - 1)

    return run


_run_floats, _run_bfloats = _make_run(FLOAT32), _make_run(BFLOAT16)


def activate_floats(address):
    """A thread's part of GELU in float32; `address` is that of an ACTIVATION row."""
    _run_floats(address)


def activate_bfloats(address):
    """A thread's part of GELU in bfloat16; `address` is that of an ACTIVATION row."""
    _run_bfloats(address)
