"""Matrix products of a few rows with a stored weight, a part of the outputs for each thread."""

from __future__ import annotations

from typing import Any

from gptrio.kernels.cpu_decode import MAX_ROWS_AMX
from gptrio.kernels.cpu_decode import amx as tiles
from gptrio.kernels.cpu_decode import int4_vnni as nibbles
from gptrio.kernels.cpu_decode.amx import multiply_tiled
from gptrio.kernels.cpu_decode.int4_vnni import nibble_dot_code, pack_rows, packed_stride
from gptrio.kernels.cpu_decode.llvm_intrinsics import (
    axpy_code,
    chosen,
    dot_code,
    kernel,
    load_float32,
    store_float32,
    tile_code,
)
from gptrio.kernels.cpu_decode.structs import FLOAT32, FLOATS, INT4, INT8, LANES

# README.md says what each constant trades
TOGETHER = 4  # inputs per pass over the weight
LINES = 2  # rows of an (out, in) weight per pass
LINES_AHEAD = 4  # distance of prefetches in rows of an (out, in) weight
PARTS = 4  # vectors of 16 columns of an (in, out) weight per pass
K_BLOCK = 32  # rows of an (in, out) weight per pass
FEWEST_TILED = 2  # inputs from which AMX tiles are used
INT4_BY_INT8 = nibbles.is_available()
PACKED_AT = 64  # where packed inputs are in a thread's working memory, in bytes: after TOGETHER * LINES sums


def workspace_for(p: Any) -> int:
    """Bytes of working memory that a thread needs for a PRODUCT row."""
    codes = MAX_ROWS_AMX * packed_stride(int(p["inputs"])) if p["format"] == INT4 else 0
    return max(PACKED_AT + codes, tiles.workspace_for(p) if p["tiled"] else 0)


def _dot(rows: int, lines: int) -> Any:
    """Products of `lines` rows of a weight of any format with `rows` inputs."""
    cases = {(format,): dot_code(format, rows, lines) for format in (*FLOATS, INT8)}
    return chosen(cases | {(INT4,): nibble_dot_code(rows, lines) if INT4_BY_INT8 else dot_code(INT4, rows, lines)})


# by the weight's format
dot, dot_together = _dot(1, LINES), _dot(TOGETHER, LINES)
float_dots, float_dots_of_lanes = (
    chosen({(format,): dot_code(format, 1, lines) for format in FLOATS}) for lines in (LINES, LANES)
)
add_one, add_eight = (chosen({(format,): axpy_code(format, inputs) for format in FLOATS}) for inputs in (1, 8))
tile, wide_tile = (chosen({(format,): tile_code(format, TOGETHER, parts) for format in FLOATS}) for parts in (1, PARTS))


@kernel()
def size_of(format):
    """Bytes of an element of a format that is not int4."""
    if format == FLOAT32:
        return 4
    return 1 if format == INT8 else 2


@kernel()
def share(count, unit, thread, threads):
    """First and end of a thread's part of `count` things, in whole units."""
    units = (count + unit - 1) // unit
    return min(units * thread // threads * unit, count), min(units * (thread + 1) // threads * unit, count)


@kernel()
def weighted_sum(format, weight, stride, ahead, x, y, inputs, outputs):
    """y += x @ W for one row: W (inputs, outputs), `stride` bytes a row; x and y are addresses of floats.

    What is `ahead` bytes after a weight is read soon after it.
    """
    i = 0
    while i + 8 <= inputs:
        add_eight(format, weight + i * stride, stride, ahead, x + 4 * i, y, outputs)
        i += 8
    while i < inputs:
        add_one(format, weight + i * stride, stride, ahead, x + 4 * i, y, outputs)
        i += 1


@kernel()
def multiply(p, x, x_stride, y, y_stride, rows, adds, workspace, thread, threads):
    """y = x @ W + b, or y += x @ W + b if `adds`, for a thread's part of the outputs.

    Args:
        p: a PRODUCT row.
        x, x_stride: address of (rows, inputs) floats, and bytes from row to row.
        y, y_stride: address of the results, and bytes from row to row.
        rows: number of rows.
        adds: whether to add to what is there.
        workspace: address of this thread's working memory.
        thread, threads: which part.
    """
    start, end = share(p.outputs, LANES, thread, threads)
    y += 4 * p.offset
    left = start
    if p.tiled and rows >= FEWEST_TILED:
        left = multiply_tiled(p, x, x_stride, y, y_stride, rows, adds, workspace, start, end)
    if p.is_in_out:
        _start_with_bias(p, y, y_stride, rows, adds, left, end)
        _multiply_in_out(p, x, x_stride, y, y_stride, rows, left, end)
    else:
        _multiply_out_in(p, x, x_stride, y, y_stride, rows, adds, workspace, left, end)
    return start, end


@kernel()
def _start_with_bias(p, y, y_stride, rows, adds, start, end):
    for r in range(rows):
        for o in range(start, end):
            target = y + r * y_stride + 4 * o
            bias = load_float32(p.bias + 4 * o) if p.bias else 0.0
            store_float32(target, bias + load_float32(target) if adds else bias)


@kernel()
def _multiply_in_out(p, x, x_stride, y, y_stride, rows, start, end):
    size = size_of(p.format)
    stride = p.outputs * size
    shared = rows // TOGETHER * TOGETHER
    for i in range(0, p.inputs if shared else 0, K_BLOCK):
        num_inputs = min(K_BLOCK, p.inputs - i)
        o = start
        while o < end:
            parts = PARTS if o + PARTS * LANES <= end else 1
            columns, out = p.weight + i * stride + o * size, y + 4 * o
            for r in range(0, shared, TOGETHER):
                line, target = x + r * x_stride + 4 * i, out + r * y_stride
                if parts == PARTS:
                    wide_tile(p.format, columns, stride, line, x_stride, 4, target, y_stride, num_inputs)
                else:
                    tile(p.format, columns, stride, line, x_stride, 4, target, y_stride, num_inputs)
            o += parts * LANES
    for r in range(shared, rows):
        line, target = x + r * x_stride, y + r * y_stride + 4 * start
        weighted_sum(p.format, p.weight + start * size, stride, 8 * stride, line, target, p.inputs, end - start)


@kernel()
def _multiply_out_in(p, x, x_stride, y, y_stride, rows, adds, workspace, start, end):
    stride = p.inputs // 2 if p.format == INT4 else p.inputs * size_of(p.format)
    scales_stride = 2 * (p.inputs // p.group) if p.format == INT4 else 0
    ahead = LINES_AHEAD * stride
    if INT4_BY_INT8 and p.format == INT4 and start < end:
        pack_rows(x, x_stride, rows, p.inputs, workspace + PACKED_AT)
        x, x_stride = workspace + PACKED_AT, packed_stride(p.inputs)
    for o in range(start, end, LINES):
        weight, scales = p.weight + o * stride, p.scale + o * scales_stride
        lines = min(LINES, end - o)
        step, scales_step = stride if lines == LINES else 0, scales_stride if lines == LINES else 0
        r = 0
        while r < rows:
            count = TOGETHER if r + TOGETHER <= rows else 1
            line = x + r * x_stride
            if count == 1:
                dot(p.format, weight, step, ahead, scales, scales_step, p.group, line, x_stride, p.inputs, workspace)
            else:
                dot_together(
                    p.format, weight, step, ahead, scales, scales_step, p.group, line, x_stride, p.inputs, workspace
                )
            _finish(p, y + r * y_stride, y_stride, count, adds, workspace, o, lines)
            r += count


@kernel()
def _finish(p, y, y_stride, rows, adds, sums, first, lines):
    """Scale the sums of some rows and lines, add the bias, and store or add them."""
    for k in range(lines):
        o = first + k
        factor = load_float32(p.scale + 4 * o) if p.format == INT8 else 1.0
        bias = load_float32(p.bias + 4 * o) if p.bias else 0.0
        for r in range(rows):
            target = y + r * y_stride + 4 * o
            total = load_float32(sums + 4 * (r * LINES + k)) * factor + bias
            store_float32(target, total + load_float32(target) if adds else total)
