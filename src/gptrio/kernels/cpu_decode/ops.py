"""Norms, activations, rotary positions and attention of one new position, in float32."""

from __future__ import annotations

import math

import numpy as np
from numba import float32

from gptrio.kernels.cpu_decode.arrays import floats, long_integers, round_to_bfloat16
from gptrio.kernels.cpu_decode.llvm_intrinsics import (
    MATHS,
    kernel,
    load_float32,
    power_of_two,
    store_float16,
)
from gptrio.kernels.cpu_decode.matmul import LINES, float_dots, float_dots_of_lanes, share, size_of, weighted_sum
from gptrio.kernels.cpu_decode.structs import BFLOAT16, FLOAT32, GELU_ERF, GELU_TANH, LANES, RELU, SILU


@kernel(fastmath=MATHS)
def exp(x):
    """e to the x, to a unit in the last place or two; without a library call, so that loops of it become vectors."""
    x = float32(-87.0) if x < float32(-87.0) else x
    x = float32(88.0) if x > float32(88.0) else x
    whole = np.floor(x * float32(1.4426950408889634) + float32(0.5))
    rest = x - whole * float32(0.693359375) + whole * float32(2.12194440e-4)
    value = float32(1.9875691500e-4)
    value = value * rest + float32(1.3981999507e-3)
    value = value * rest + float32(8.3334519073e-3)
    value = value * rest + float32(4.1665795894e-2)
    value = value * rest + float32(1.6666665459e-1)
    value = value * rest + float32(5.0000001201e-1)
    value = value * rest * rest + rest + float32(1.0)
    return value * power_of_two(whole)


@kernel(fastmath=MATHS)
def _erf(x):
    """The error function within 1.5e-7 (Abramowitz and Stegun, 1964, 7.1.26)."""
    size = abs(x)
    t = float32(1.0) / (float32(1.0) + float32(0.3275911) * size)
    value = float32(1.061405429)
    value = value * t - float32(1.453152027)
    value = value * t + float32(1.421413741)
    value = value * t - float32(0.284496736)
    value = value * t + float32(0.254829592)
    value = float32(1.0) - value * t * exp(-size * size)
    return value if x >= 0 else -value


@kernel(fastmath=MATHS)
def activate(kind, y):
    """Apply an activation to an array in place."""
    if kind == RELU:
        for i in range(len(y)):
            y[i] = y[i] if y[i] > 0 or y[i] != y[i] else float32(0.0)
    elif kind == GELU_TANH:
        for i in range(len(y)):
            x = y[i]
            inner = float32(1.5957691216057308) * (x + float32(0.044715) * x * x * x)  # 2 * sqrt(2 / pi) * (...)
            y[i] = x / (float32(1.0) + exp(-inner))  # 0.5 * (1 + tanh(u)) = 1 / (1 + exp(-2u))
    elif kind == GELU_ERF:
        for i in range(len(y)):
            y[i] = float32(0.5) * y[i] * (float32(1.0) + _erf(y[i] * float32(0.7071067811865476)))
    elif kind == SILU:
        for i in range(len(y)):
            y[i] = y[i] / (float32(1.0) + exp(-y[i]))


@kernel(fastmath=MATHS)
def layer_norm(x, y, weight, bias, eps, rows, width):
    """Normalise rows of x into y (addresses of floats); weight and bias are addresses too."""
    factors, offsets = floats(weight, width), floats(bias, width)
    for r in range(rows):
        line, out = floats(x + 4 * r * width, width), floats(y + 4 * r * width, width)
        total = float32(0.0)
        for i in range(width):
            total += line[i]
        mean = total / float32(width)
        squares = float32(0.0)
        for i in range(width):
            off = line[i] - mean
            squares += off * off
        inverse = float32(1.0) / math.sqrt(squares / float32(width) + float32(eps))
        for i in range(width):
            out[i] = (line[i] - mean) * inverse * factors[i] + offsets[i]


@kernel()
def _rotate(x, cosines, sines, half):
    """Turn pairs (i, i + half) of a head in place."""
    for i in range(half):
        first, second = x[i], x[half + i]
        x[i] = first * cosines[i] - second * sines[i]
        x[half + i] = second * cosines[i] + first * sines[i]


@kernel()
def _store(format, address, values, count):
    if format == FLOAT32:
        floats(address, count)[:] = floats(values, count)
    elif format == BFLOAT16:
        round_to_bfloat16(values, address, count)
    else:
        for i in range(count):
            store_float16(address + 2 * i, load_float32(values + 4 * i))


def row_dot_floats(rows: int) -> int:
    """Floats that `row_dots` writes for so many rows: it takes LINES at a time, the last row twice if it is odd."""
    return -(-rows // LINES) * LINES


@kernel()
def row_dots(format, matrix, ahead, x, width, rows, out):
    """Products of the rows of a matrix with a vector: `row_dot_floats` of them. What is `ahead` is read next."""
    line = width * size_of(format)
    r = 0
    while r + LANES <= rows:
        float_dots_of_lanes(format, matrix + r * line, line, ahead, 0, 0, 0, x, 0, width, out + 4 * r)
        r += LANES
    while r < rows:
        step = line if r + LINES <= rows else 0
        float_dots(format, matrix + r * line, step, ahead, 0, 0, 0, x, 0, width, out + 4 * r)
        r += LINES


@kernel(fastmath=MATHS)
def _softmax(scores, count, scale):
    maximum = scores[0]
    for i in range(1, count):
        maximum = max(maximum, scores[i])
    total = float32(0.0)
    for i in range(count):
        scores[i] = exp((scores[i] - maximum) * scale)
        total += scores[i]
    for i in range(count):
        scores[i] /= total


@kernel()
def attend(m, layer, thread, threads):
    """Store the new keys and values of a thread's heads, and attend to all that is seen: qkv to attended."""
    width, format = m.head_width, m.cache_format
    line = width * size_of(format)
    scores_address = m.scores + m.scores_stride * thread
    start, end = share(m.rows * m.heads, 1, thread, threads)
    for pair in range(start, end):
        row, head = pair // m.heads, pair % m.heads
        first = layer.first
        if m.starts:
            first = max(first, long_integers(m.starts, m.rows)[row] - layer.dropped)
        seen = layer.slot + 1 - first
        q = m.qkv + 4 * (row * 3 * m.width + head * m.head_stride)
        k, v = q + 4 * m.k_offset, q + 4 * m.v_offset
        if m.rotated:
            half = m.rotated // 2
            turn = 4 * half * (row if m.turns > 1 else 0)
            cosines, sines = floats(m.cosines + turn, half), floats(m.sines + turn, half)
            _rotate(floats(q, width), cosines, sines, half)
            _rotate(floats(k, width), cosines, sines, half)
        keys, values = layer.keys + pair * layer.capacity * line, layer.values + pair * layer.capacity * line
        _store(format, keys + layer.slot * line, k, width)
        row_dots(format, keys + first * line, values - keys, q, width, seen, scores_address)
        _store(format, values + layer.slot * line, v, width)
        _softmax(floats(scores_address, seen), seen, float32(layer.scale))
        out = m.attended + 4 * (row * m.width + head * width)
        result = floats(out, width)
        for i in range(width):
            result[i] = float32(0.0)
        ahead = keys + layer.capacity * line - values  # the next head's keys
        weighted_sum(format, values + first * line, line, ahead, scores_address, out, seen, width)
