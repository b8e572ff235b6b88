"""Causal attention of many queries, compiled for this processor: float32 by vectors, bfloat16 by AMX tiles.

A thread takes one head, and a block of its queries at a time. Scores are transposed, (keys, queries): a vector holds
one key's scores with 16 queries, so that no sum runs across a vector, and the weights lie as the product with the
values reads them. The scores of a block with all keys that it sees stay in the second cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from numba import carray, float32
from numba.extending import register_jitable

from gptrio.kernels.cpu_decode.amx import prepare_tiles, release, rows_code, transpose
from gptrio.kernels.cpu_decode.arrays import floats
from gptrio.kernels.cpu_decode.llvm_intrinsics import add_and_get, emitted, kernel, make_view, tile_code
from gptrio.kernels.cpu_decode.structs import BFLOAT16, FLOAT32, LANES
from gptrio.kernels.cpu_prefill.vectors import (
    copy_rows,
    make_exponentials,
    make_maxima,
    make_square,
    transpose_pairs,
)

KEYS = 32  # that are taken together
_QUERIES = (64, 32)  # of a block, in float32 and bfloat16
_CHUNK = 64  # keys whose float32 weights and values stay in the first cache
_SIZES = (4, 2)  # bytes of a value
_SQUARE, _TILE = 1024, 1024  # bytes

ATTENTION = np.dtype(
    [
        ("next", np.int64),  # item of work that is taken next, counted up by all threads
        ("threads", np.int64),  # threads that have begun
        ("items", np.int64),  # parts of all heads of all rows
        ("parts", np.int64),  # of a head's queries
        ("heads", np.int64),
        ("queries", np.int64),  # T
        ("keys", np.int64),  # S
        ("offset", np.int64),  # of the last key that the first query sees
        ("window", np.int64),  # most keys that a query sees
        ("width", np.int64),  # D
        ("q", np.int64),  # (B, H, T, D); its strides in bytes, as those of the others
        ("q_row", np.int64),
        ("q_head", np.int64),
        ("q_step", np.int64),
        ("k", np.int64),  # (B, H, S, D)
        ("k_row", np.int64),
        ("k_head", np.int64),
        ("k_step", np.int64),
        ("v", np.int64),  # (B, H, S, D)
        ("v_row", np.int64),
        ("v_head", np.int64),
        ("v_step", np.int64),
        ("out", np.int64),  # (B, H, T, D)
        ("out_row", np.int64),
        ("out_head", np.int64),
        ("out_step", np.int64),
        ("factor", np.float64),  # of the scores, as exponents of 2
        ("workspace", np.int64),
        ("workspace_stride", np.int64),  # bytes from thread to thread
    ],
    align=True,
)
_tasks = make_view(numba.from_dtype(ATTENTION))


@register_jitable
def buffers(format, keys, width, start):
    """Addresses of the buffers of a thread's workspace, which begins at `start`, and of its end.

    They are the tiles' sizes, a square, the maxima and sums of a block, its queries and their transpose, the last keys
    or values, the totals, the scores, and in bfloat16 the weights and the values as tiles.
    """
    line, size = 4 * _QUERIES[format], _SIZES[format]
    most = (keys + KEYS - 1) // KEYS * KEYS
    square = start + 64
    maxima = square + _SQUARE
    sums = maxima + line
    queries = sums + line
    transposed = queries + _QUERIES[format] * size * width
    tail = transposed + _QUERIES[format] * size * width
    totals = tail + KEYS * size * width
    scores = totals + line * width
    weights = scores + line * most
    values = weights if format == FLOAT32 else weights + line // 2 * most
    end = values if format == FLOAT32 else values + size * width * most
    return square, maxima, sums, queries, transposed, tail, totals, scores, weights, values, end


@kernel()
def _copy(source, stride, rows, target, size, most):
    """Copy rows to where they lie end to end, and fill up to `most` of them with zeros."""
    copy_rows(source, stride, rows, target, size, size)
    floats(target + rows * size, (most - rows) * size // 4)[:] = 0


@kernel()
def _whole(source, stride, rows, buffer, size):
    """Address and stride of KEYS rows: where they lie, or if there are fewer, in a buffer that is filled with zeros."""
    if rows >= KEYS:
        return source, stride
    _copy(source, stride, rows, buffer, size, KEYS)
    return buffer, size


@kernel()
def _seen(task, query, count):
    """The first key, a multiple of KEYS, and the end of the keys that `count` queries see."""
    first = max(task.offset + query - task.window + 1, 0) // KEYS * KEYS
    return first, min(task.offset + query + count, task.keys)


@kernel()
def _hide(task, scores, columns, key, query):
    """Set the scores of KEYS keys with queries that do not see them to -inf."""
    place = task.offset + query
    if key + KEYS - 1 <= place and key > place + columns - 1 - task.window:
        return
    for j in range(KEYS):
        row = floats(scores + 4 * columns * j, columns)
        for i in range(columns):
            if key + j > place + i or key + j <= place + i - task.window:
                row[i] = -np.inf


@kernel()
def _reset(maxima, sums, columns):
    floats(maxima, columns)[:] = -np.inf
    floats(sums, columns)[:] = 0


def _make_finish(format: int) -> Callable[..., None]:
    square_of, size, columns = make_square(format), _SIZES[format], _QUERIES[format]

    @kernel()
    def finish(sums, totals, rows, width, square, out, out_step):
        """Divide the columns of the totals (width, columns) by their sums, and write them as rows."""
        factors = floats(sums, columns)
        for i in range(columns):
            factors[i] = float32(1.0) / factors[i]
        for b in range(0, rows, LANES):
            count = min(rows - b, LANES)
            for d in range(0, width, LANES):
                source, target = totals + 4 * (columns * d + b), out + b * out_step + size * d
                if count == LANES:
                    square_of(source, 4 * columns, sums + 4 * b, target, out_step)
                else:
                    square_of(source, 4 * columns, sums + 4 * b, square, size * LANES)
                    copy_rows(square, size * LANES, count, target, out_step, size * LANES)

    return finish


def _make_attend_by_floats() -> Callable[..., None]:
    """Attention of the queries from `first` to `end` of a head, in float32."""
    columns, finish = _QUERIES[FLOAT32], _make_finish(FLOAT32)
    line = 4 * columns
    tile = emitted()(tile_code(FLOAT32, 4, columns // LANES))
    maxima_of = make_maxima(columns // LANES)
    exponentials = make_exponentials(columns // LANES, FLOAT32)

    @kernel()
    def transpose_queries(queries, width, square, transposed):
        for b in range(0, columns, LANES):
            for d in range(0, width, LANES):
                transpose(queries + 4 * (width * b + d), 4 * width, square)
                copy_rows(square, 4 * LANES, LANES, transposed + line * d + 4 * b, line, 4 * LANES)

    @kernel()
    def attend(task, q, k, v, out, first, end, workspace):
        width = task.width
        places = buffers(FLOAT32, task.keys, width, workspace)
        square, maxima, sums, queries, transposed, tail, totals, scores = places[:8]
        for query in range(first, end, columns):
            count = min(columns, end - query)
            start, stop = _seen(task, query, count)
            _copy(q + query * task.q_step, task.q_step, count, queries, 4 * width, columns)
            transpose_queries(queries, width, square, transposed)
            _reset(maxima, sums, columns)
            floats(totals, width * columns)[:] = 0
            for key in range(start, stop, KEYS):
                own = scores + line * (key - start)
                rows, step = _whole(k + key * task.k_step, task.k_step, task.keys - key, tail, 4 * width)
                floats(own, KEYS * columns)[:] = 0
                for j in range(0, KEYS, 4):
                    tile(transposed, line, rows + j * step, step, 4, own + line * j, line, width)
                _hide(task, own, columns, key, query)
                maxima_of(own, KEYS, maxima)
            for key in range(start, stop, _CHUNK):
                keys, own, values = min(_CHUNK, stop - key), scores + line * (key - start), v + key * task.v_step
                exponentials(own, keys, maxima, sums, float32(task.factor), own)
                for d in range(0, width, 4):
                    tile(own, line, values + 4 * d, 4, task.v_step, totals + line * d, line, keys)
            finish(sums, totals, count, width, square, out + query * task.out_step, task.out_step)

    return attend


def _make_attend_by_tiles() -> Callable[..., None]:
    """Attention of the queries from `first` to `end` of a head, in bfloat16."""
    columns, finish = _QUERIES[BFLOAT16], _make_finish(BFLOAT16)
    line = 4 * columns
    maxima_of = make_maxima(columns // LANES)
    exponentials = make_exponentials(columns // LANES, BFLOAT16)
    multiply_by_tiles = emitted()(rows_code(BFLOAT16, KEYS // LANES, columns // LANES))

    @kernel()
    def transpose_values(task, v, start, stop, tail, values):
        """Write values as tiles (width / 16, keys / 32) of 16 dimensions and 32 keys."""
        blocks = (task.keys + KEYS - 1) // KEYS
        for key in range(start, stop, KEYS):
            rows, step = _whole(v + key * task.v_step, task.v_step, task.keys - key, tail, 2 * task.width)
            for d in range(0, task.width, LANES):
                transpose_pairs(rows + 2 * d, step, values + _TILE * (d // LANES * blocks + key // KEYS))

    @kernel()
    def attend(task, q, k, v, out, first, end, workspace):
        width, group = task.width, _TILE * ((task.keys + KEYS - 1) // KEYS)
        places = buffers(BFLOAT16, task.keys, width, workspace)
        square, maxima, sums, queries, transposed, tail, totals, scores, weights, values = places[:10]
        prepare_tiles(workspace, KEYS, columns // LANES, True)
        transpose_values(task, v, _seen(task, first, 1)[0], _seen(task, end, 0)[1], tail, values)
        for query in range(first, end, columns):
            count = min(columns, end - query)
            start, stop = _seen(task, query, count)
            _copy(q + query * task.q_step, task.q_step, count, queries, 2 * width, columns)
            for b in range(columns // LANES):
                for d in range(0, width, 32):
                    source = queries + 2 * (width * LANES * b + d)
                    transpose(source, 2 * width, transposed + _TILE * (columns // LANES * d // 32 + b))
            _reset(maxima, sums, columns)
            for key in range(start, stop, KEYS):
                own = scores + line * (key - start)
                rows, step = _whole(k + key * task.k_step, task.k_step, task.keys - key, tail, 2 * width)
                multiply_by_tiles(rows, step, LANES * step, 64, transposed, width // 32, own, line)
                _hide(task, own, columns, key, query)
                maxima_of(own, KEYS, maxima)
            blocks = (stop - start + KEYS - 1) // KEYS
            exponentials(scores, blocks * KEYS, maxima, sums, float32(task.factor), weights)
            for d in range(0, width, 32):
                rows = values + group * (d // LANES) + _TILE * (start // KEYS)
                multiply_by_tiles(rows, 64, group, _TILE, weights, blocks, totals + line * d, line)
            finish(sums, totals, count, width, square, out + query * task.out_step, task.out_step)
        release()

    return attend


def _make_run(format: int) -> Callable[..., None]:
    """What each thread runs, given the address of an ATTENTION row, for values of a format."""
    attend, columns = _make_attend_by_tiles() if format == BFLOAT16 else _make_attend_by_floats(), max(_QUERIES)

    @kernel()
    def run(address):
        task = carray(_tasks(address), (1,))[0]
        workspace = task.workspace + task.workspace_stride * (add_and_get(address + 8, 1) - 1)
        size = ((task.queries + task.parts - 1) // task.parts + columns - 1) // columns * columns
        item = add_and_get(address, 1) - 1
        while item < task.items:
            first = item % task.parts * size
            end, head = min(first + size, task.queries), item // task.parts
            row, head = head // task.heads, head % task.heads
            q, k = task.q + row * task.q_row + head * task.q_head, task.k + row * task.k_row + head * task.k_head
            v = task.v + row * task.v_row + head * task.v_head
            out = task.out + row * task.out_row + head * task.out_head
            if first < end:
                attend(task, q, k, v, out, first, end, workspace)
            item = add_and_get(address, 1) - 1

    return run


_run_floats, _run_bfloats = _make_run(FLOAT32), _make_run(BFLOAT16)


def attend_floats(address):
    """A thread's part of attention in float32; `address` is that of an ATTENTION row."""
    _run_floats(address)


def attend_bfloats(address):
    """A thread's part of attention in bfloat16; `address` is that of an ATTENTION row."""
    _run_bfloats(address)
