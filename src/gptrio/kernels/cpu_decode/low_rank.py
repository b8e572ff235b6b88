"""Products whose weight has low-rank updates beside it (LoRA; Hu et al., 2021): y = W x + b + scaling * B (A x).

Every thread computes A x by itself, as the rank is small: what a barrier costs is more.
"""

from __future__ import annotations

import numba
from numba import carray, float32

from gptrio.kernels.cpu_decode import MAX_ROWS_AMX
from gptrio.kernels.cpu_decode.arrays import floats, widen
from gptrio.kernels.cpu_decode.llvm_intrinsics import MATHS, kernel, make_view
from gptrio.kernels.cpu_decode.matmul import multiply, size_of
from gptrio.kernels.cpu_decode.ops import row_dot_floats, row_dots
from gptrio.kernels.cpu_decode.structs import FLOAT32, LANES, UPDATE

_updates = make_view(numba.from_dtype(UPDATE))
_row_dot_floats = kernel()(row_dot_floats)


def workspace_for(rank: int) -> int:
    """Bytes of working memory that a thread needs for an update: A x of every row, and some rows of B as floats."""
    return 4 * (MAX_ROWS_AMX * row_dot_floats(rank) + LANES * rank)


@kernel()
def linear(p, x, x_stride, y, y_stride, rows, adds, workspace, thread, threads):
    """`multiply`, with the low-rank updates of the weight."""
    start, end = multiply(p, x, x_stride, y, y_stride, rows, adds, workspace, thread, threads)
    updates = carray(_updates(p.updates), (p.num_updates,))
    for i in range(p.num_updates if start < end else 0):
        _add(updates[i], p.inputs, x, x_stride, y + 4 * p.offset, y_stride, rows, workspace, start, end)
    return start, end


@kernel()
def _add(update, inputs, x, x_stride, y, y_stride, rows, workspace, start, end):
    """Add an update to the outputs from `start` to `end`."""
    rank, size = update.rank, size_of(update.format)
    line = 4 * _row_dot_floats(rank)
    wide = workspace + rows * line
    for r in range(rows):
        row_dots(update.format, update.a, 0, x + r * x_stride, inputs, rank, workspace + r * line)
    for o in range(start, end, LANES):
        count, b = min(LANES, end - o), update.b + o * rank * size
        if update.format != FLOAT32:
            widen(update.format, b, wide, count * rank)
            b = wide
        for r in range(rows):
            _add_lines(b, workspace + r * line, y + r * y_stride + 4 * o, rank, count, float32(update.scaling))


@kernel(fastmath=MATHS)
def _add_lines(b, low, y, rank, count, scaling):
    """Add products of `count` rows of B with A x, times a number."""
    matrix, vector, out = floats(b, count * rank), floats(low, rank), floats(y, count)
    for o in range(count):
        total = float32(0.0)
        for k in range(rank):
            total += matrix[o * rank + k] * vector[k]
        out[o] += scaling * total
