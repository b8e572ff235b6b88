"""Matrix products of a few rows with a stored weight, a part of the outputs for each thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from gptrio.kernels.compiled.tables import BFLOAT16, FLOAT16, FLOAT32, INT4, INT8, LANES
from gptrio.kernels.compiled.vectors import load_float32, make_axpy, make_dot, store_float32

TOGETHER = 4  # inputs that share one reading of the weight,
LINES = 2  # by so many of its rows at a time


def _dot_of_any_form(rows: int, lines: int) -> Callable[..., Any]:
    float32, bfloat16, float16, int8, int4 = (make_dot(form, rows, lines) for form in range(INT4 + 1))

    @njit(nogil=True)
    def dot(form, weight, stride, scales, scales_stride, group, x, x_stride, count, out):
        if form == FLOAT32:
            float32(weight, stride, scales, scales_stride, group, x, x_stride, count, out)
        elif form == BFLOAT16:
            bfloat16(weight, stride, scales, scales_stride, group, x, x_stride, count, out)
        elif form == FLOAT16:
            float16(weight, stride, scales, scales_stride, group, x, x_stride, count, out)
        elif form == INT8:
            int8(weight, stride, scales, scales_stride, group, x, x_stride, count, out)
        else:
            int4(weight, stride, scales, scales_stride, group, x, x_stride, count, out)

    return dot


def _axpy_of_any_form(inputs: int, rows: int) -> Callable[..., Any]:
    float32, bfloat16, float16 = (make_axpy(form, inputs, rows) for form in range(FLOAT16 + 1))

    @njit(nogil=True)
    def axpy(form, weight, stride, x, x_stride, y, y_stride, count):
        if form == FLOAT32:
            float32(weight, stride, x, x_stride, y, y_stride, count)
        elif form == BFLOAT16:
            bfloat16(weight, stride, x, x_stride, y, y_stride, count)
        else:
            float16(weight, stride, x, x_stride, y, y_stride, count)

    return axpy


dot, dot_together = _dot_of_any_form(1, 1), _dot_of_any_form(TOGETHER, LINES)
add_one, add_eight = _axpy_of_any_form(1, 1), _axpy_of_any_form(8, 1)
add_four_together = _axpy_of_any_form(4, TOGETHER)


@njit(nogil=True)
def size_of(form):
    """Bytes of an element of a form that is not int4."""
    if form == FLOAT32:
        return 4
    return 1 if form == INT8 else 2


@njit(nogil=True)
def share(count, unit, thread, threads):
    """First and end of a thread's part of `count` things, in whole units."""
    units = (count + unit - 1) // unit
    return min(units * thread // threads * unit, count), min(units * (thread + 1) // threads * unit, count)


@njit(nogil=True)
def weighted_sum(form, weight, stride, x, y, inputs, outputs):
    """y += x @ W for one row: W (inputs, outputs), `stride` bytes a row; x and y are addresses of floats."""
    i = 0
    while i + 8 <= inputs:
        add_eight(form, weight + i * stride, stride, x + 4 * i, 0, y, 0, outputs)
        i += 8
    while i < inputs:
        add_one(form, weight + i * stride, stride, x + 4 * i, 0, y, 0, outputs)
        i += 1


@njit(nogil=True)
def multiply(p, x, x_stride, y, y_stride, rows, adds, sums, thread, threads):
    """y = x @ W + b, or y += x @ W + b if `adds`, for a thread's part of the outputs.

    Args:
        p: a PRODUCT row.
        x, x_stride: address of (rows, inputs) floats, and bytes from row to row.
        y, y_stride: address of the results, and bytes from row to row.
        rows: number of rows.
        adds: whether to add to what is there.
        sums: address of 16 floats for this thread.
        thread, threads: which part.
    """
    start, end = share(p.outputs, LANES, thread, threads)
    y += 4 * p.place
    if p.by_columns:
        _start_with_bias(p, y, y_stride, rows, adds, start, end)
        _multiply_by_columns(p, x, x_stride, y, y_stride, rows, start, end)
    else:
        _multiply_by_rows(p, x, x_stride, y, y_stride, rows, adds, sums, start, end)
    return start, end


@njit(nogil=True)
def _start_with_bias(p, y, y_stride, rows, adds, start, end):
    for r in range(rows):
        for o in range(start, end):
            place = y + r * y_stride + 4 * o
            bias = load_float32(p.bias + 4 * o) if p.bias else 0.0
            store_float32(place, bias + load_float32(place) if adds else bias)


@njit(nogil=True)
def _multiply_by_columns(p, x, x_stride, y, y_stride, rows, start, end):
    size = size_of(p.form)
    stride, weight = p.outputs * size, p.weight + start * size
    r = 0
    while r + TOGETHER <= rows:
        for i in range(0, p.inputs, 4):
            line = x + r * x_stride + 4 * i
            out = y + r * y_stride + 4 * start
            add_four_together(p.form, weight + i * stride, stride, line, x_stride, out, y_stride, end - start)
        r += TOGETHER
    while r < rows:
        weighted_sum(p.form, weight, stride, x + r * x_stride, y + r * y_stride + 4 * start, p.inputs, end - start)
        r += 1


@njit(nogil=True)
def _multiply_by_rows(p, x, x_stride, y, y_stride, rows, adds, sums, start, end):
    stride = p.inputs // 2 if p.form == INT4 else p.inputs * size_of(p.form)
    scales_stride = 2 * (p.inputs // p.group) if p.form == INT4 else 0
    o = start
    while o < end:
        lines = LINES if o + LINES <= end else 1
        weight, scales = p.weight + o * stride, p.scale + o * scales_stride
        r = 0
        while r + TOGETHER <= rows and lines == LINES:
            line = x + r * x_stride
            dot_together(p.form, weight, stride, scales, scales_stride, p.group, line, x_stride, p.inputs, sums)
            _finish(p, y + r * y_stride, y_stride, TOGETHER, adds, sums, o, LINES)
            r += TOGETHER
        while r < rows:
            for k in range(lines):
                line = weight + k * stride
                scale = scales + k * scales_stride
                dot(p.form, line, 0, scale, 0, p.group, x + r * x_stride, 0, p.inputs, sums)
                _finish(p, y + r * y_stride, y_stride, 1, adds, sums, o + k, 1)
            r += 1
        o += lines


@njit(nogil=True)
def _finish(p, y, y_stride, rows, adds, sums, first, lines):
    """Scale the sums of some rows and lines, add the bias, and store or add them."""
    for k in range(lines):
        o = first + k
        factor = load_float32(p.scale + 4 * o) if p.form == INT8 else 1.0
        bias = load_float32(p.bias + 4 * o) if p.bias else 0.0
        for r in range(rows):
            place = y + r * y_stride + 4 * o
            total = load_float32(sums + 4 * (r * lines + k)) * factor + bias
            store_float32(place, total + load_float32(place) if adds else total)
