"""The inner loops of attention and activations over many rows, as LLVM code: vectors of 16 floats, and AMX tiles.

Each factory makes one intrinsic (see `emitted`). Addresses, strides and counts are int64; strides and sizes are in
bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils

from gptrio.kernels.cpu_decode.amx import LINE, SIDE, TILE, interleaved, is_available, transposed
from gptrio.kernels.cpu_decode.llvm_intrinsics import (
    FLOAT,
    I16,
    I32,
    I64,
    Builder,
    Value,
    after,
    apart,
    emitted,
    fma,
    load,
    loop,
    pointer,
    splat,
    variable,
)
from gptrio.kernels.cpu_decode.structs import BFLOAT16, FLOAT32, GELU_TANH, LANES

_FLOATS, _INTS, _HALVES = (ir.VectorType(kind, LANES) for kind in (FLOAT, I32, I16))
# 2 ** x on [-1/2, 1/2] by interpolation at Chebyshev's points, the lowest power first. The errors are 3e-9 and 4e-6.
_POWERS = {
    FLOAT32: (
        1.0,
        0.6931472067028329,
        0.24022650922289554,
        0.05550327226669895,
        0.00961805667843204,
        0.0013400428177711937,
        0.00015461444724808513,
    ),
    BFLOAT16: (1.0, 0.6931210452034274, 0.24022349038021354, 0.05592197584225338, 0.009666368515338686),
}
_LEAST, _MOST = -126.0, 126.0  # exponents of normal floats


class _BFloat(ir.types.Type):  # type: ignore[misc]  # llvmlite has no types
    """LLVM's bfloat16, for which llvmlite has no class."""

    def __str__(self) -> str:
        return "bfloat"


_BFLOATS = ir.VectorType(_BFloat(), LANES)


def supports_bfloat16() -> bool:
    """Whether the processor has tiles and vectors of bfloat16, and this LLVM writes code for both."""
    return is_available() and bool(llvmlite.binding.llvm_version_info >= (20,))


def make_maxima(columns: int) -> Callable[..., None]:
    """An intrinsic that raises 16 * `columns` maxima to the largest values of their columns.

    It is called as (scores, rows, maxima): address and number of the rows of floats, and address of the maxima.
    """

    @emitted()
    def maxima(builder, scores, rows, maxima):
        best = [variable(builder, load(builder, FLOAT32, maxima, LINE * c)) for c in range(columns)]
        with loop(builder, rows, 1) as row:
            line = after(builder, scores, row, LINE * columns)
            for c, target in enumerate(best):
                value, known = load(builder, FLOAT32, line, LINE * c), builder.load(target)
                builder.store(builder.select(builder.fcmp_ordered(">", value, known), value, known), target)
        for c, target in enumerate(best):
            _store(builder, FLOAT32, builder.load(target), maxima, LINE * c)

    return maxima


def make_exponentials(columns: int, format: int) -> Callable[..., None]:
    """An intrinsic for 2 ** (factor * (score - maximum)), with 16 * `columns` scores in a row, and sums of the columns.

    It is called as (scores, rows, maxima, sums, factor, out): address and number of the rows, addresses of the maxima
    and of the sums, which grow; the factor; address of the result. The result is rows of floats, or in bfloat16 tiles
    of 32 rows and 16 columns, two rows side by side, those of the same rows one after another.
    """
    together = 1 if format == FLOAT32 else 2

    def _row_of_tile(builder: Builder, out: Value, row: Value) -> Value:
        tile = builder.mul(builder.lshr(row, ir.Constant(I64, 5)), ir.Constant(I64, TILE * columns))
        inside = builder.mul(builder.and_(row, ir.Constant(I64, 31)), ir.Constant(I64, LINE // 2))
        return builder.add(out, builder.add(tile, inside))

    @emitted(*(types.int64,) * 4, types.float32, types.int64)
    def exponentials(builder, scores, rows, maxima, sums, factor, out):
        scale = splat(builder, factor, LANES)
        offsets = [builder.fmul(load(builder, FLOAT32, maxima, LINE * c), scale) for c in range(columns)]
        totals = [variable(builder, load(builder, FLOAT32, sums, LINE * c)) for c in range(columns)]
        with loop(builder, rows, together) as row:
            line = after(builder, scores, row, LINE * columns)
            target = after(builder, out, row, LINE * columns) if together == 1 else _row_of_tile(builder, out, row)
            for c in range(columns):
                values = []
                for k in range(together):
                    score = load(builder, FLOAT32, line, LINE * (columns * k + c))
                    product = builder.fmul(score, scale, flags=("contract",))
                    power = builder.fsub(product, offsets[c], flags=("contract",))
                    values.append(_exp2(builder, power, format))
                    builder.store(builder.fadd(builder.load(totals[c]), values[k]), totals[c])
                if together == 1:
                    _store(builder, FLOAT32, values[0], target, LINE * c)
                else:
                    first, second = (_to_bfloats(builder, value) for value in values)
                    pairs = interleaved(builder, first, second, LANES, 0, LANES)
                    builder.store(pairs, pointer(builder, target, pairs.type, TILE * c), align=4)
        for c, own in enumerate(totals):
            _store(builder, FLOAT32, builder.load(own), sums, LINE * c)

    return exponentials


def make_activation(kind: int, format: int) -> Callable[..., None]:
    """An intrinsic that applies GELU in place: (address of values, their number, a multiple of 16)."""
    size = 4 if format == FLOAT32 else 2

    @emitted()
    def activation(builder, address, count):
        with loop(builder, count, LANES) as start:
            place = after(builder, address, start, size)
            _store(builder, format, _gelu(builder, load(builder, format, place), kind, format), place)

    return activation


@emitted()
def transpose_pairs(builder, source, stride, target):
    """Transpose 32 rows of 16 bfloat16 values, `stride` bytes apart, into 16 rows of 64 bytes."""
    lines = [
        builder.load(pointer(builder, address, _HALVES), align=2)
        for address in apart(builder, source, stride, 2 * SIDE)
    ]
    pairs = zip(lines[::2], lines[1::2], strict=True)
    rows = [builder.bitcast(interleaved(builder, *pair, SIDE, 0, SIDE), _INTS) for pair in pairs]
    for i, row in enumerate(transposed(builder, rows)):
        builder.store(row, pointer(builder, target, _INTS, LINE * i), align=4)


def make_square(format: int) -> Callable[..., None]:
    """An intrinsic that transposes 16 rows of 16 floats, each row times 16 factors, to rows of float32 or bfloat16.

    It is called as (rows, stride, factors, out, out_stride): address of the first row, and bytes to the next; address
    of the factors; address of the result's first row, and bytes to the next.
    """

    @emitted()
    def square(builder, rows, stride, factors, out, out_stride):
        scale = load(builder, FLOAT32, factors)
        lines = [builder.fmul(load(builder, FLOAT32, line), scale) for line in apart(builder, rows, stride, SIDE)]
        columns = transposed(builder, [builder.bitcast(line, _INTS) for line in lines])
        for column, address in zip(columns, apart(builder, out, out_stride, SIDE), strict=True):
            value = builder.bitcast(column, _FLOATS)
            _store(builder, format, value, address)

    return square


@emitted()
def copy_rows(builder, source, stride, rows, target, target_stride, size):
    """Copy `size` bytes, a multiple of 32, of each of some rows."""
    with loop(builder, rows, 1) as row:
        here = builder.add(source, builder.mul(row, stride))
        there = builder.add(target, builder.mul(row, target_stride))
        with loop(builder, size, LINE // 2) as offset:
            value = builder.load(pointer(builder, builder.add(here, offset), _HALVES), align=1)
            builder.store(value, pointer(builder, builder.add(there, offset), _HALVES), align=1)


def _store(builder: Builder, format: int, value: Value, address: Value, offset: int = 0) -> None:
    """Write 16 floats in a format, float32 or bfloat16."""
    kind, align = (_FLOATS, 4) if format == FLOAT32 else (_HALVES, 2)
    stored = value if format == FLOAT32 else _to_bfloats(builder, value)
    builder.store(stored, pointer(builder, address, kind, offset), align=align)


def _to_bfloats(builder: Builder, value: Value) -> Value:
    """The bits of the nearest bfloat16 of 16 floats."""
    return builder.bitcast(builder.fptrunc(value, _BFLOATS), _HALVES)


def _numbers(value: float) -> Value:
    return ir.Constant(_FLOATS, [ir.Constant(FLOAT, value)] * LANES)


def _integers(value: int) -> Value:
    return ir.Constant(_INTS, [ir.Constant(I32, value)] * LANES)


def _exp2(builder: Builder, x: Value, format: int) -> Value:
    """2 to the power of floats, as exact as a format needs: NaN stays NaN, and 0 below 2 ** -126; x is at most 127."""
    kind = ir.FunctionType(_FLOATS, [_FLOATS])
    rint = cgutils.get_or_insert_function(builder.module, kind, f"llvm.rint.v{LANES}f32")
    whole = builder.call(rint, [x])
    rest, (*others, last) = builder.fsub(x, whole), _POWERS[format]
    value = _numbers(last)
    for factor in reversed(others):
        value = fma(builder, value, rest, _numbers(factor))
    exponent = builder.shl(builder.fptosi(whole, _INTS), _integers(23))
    value = builder.bitcast(builder.add(builder.bitcast(value, _INTS), exponent), _FLOATS)
    return builder.select(builder.fcmp_ordered("<", x, _numbers(_LEAST)), _numbers(0.0), value)


def _gelu(builder: Builder, x: Value, kind: int, format: int) -> Value:
    """GELU (Hendrycks and Gimpel, 2016) of floats, as exact as a format needs."""
    if kind == GELU_TANH:  # 0.5 * (1 + tanh(u)) is 1 / (1 + exp(-2u))
        factor = -2.0 * math.sqrt(2.0 / math.pi) * math.log2(math.e)
        power = builder.fmul(x, fma(builder, builder.fmul(x, x), _numbers(factor * 0.044715), _numbers(factor)))
        power = builder.select(builder.fcmp_ordered(">", power, _numbers(_MOST)), _numbers(_MOST), power)
        divisor = builder.fadd(_exp2(builder, power, format), _numbers(1.0))
        return builder.fdiv(x, divisor) if format == FLOAT32 else builder.fmul(x, _inverse(builder, divisor))
    half = builder.fmul(x, _numbers(0.5))
    return fma(builder, half, _erf(builder, builder.fmul(x, _numbers(math.sqrt(0.5))), format), half)


def _inverse(builder: Builder, x: Value) -> Value:
    """1 / x within 2 ** -14, by one instruction of the processors that have tiles."""
    mask = ir.IntType(LANES)
    kind = ir.FunctionType(_FLOATS, [_FLOATS, _FLOATS, mask])
    call = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.rcp14.ps.512")
    return builder.call(call, [x, _numbers(0.0), ir.Constant(mask, -1)])


def _erf(builder: Builder, x: Value, format: int) -> Value:
    """The error function within 1.5e-7 (Abramowitz and Stegun, 1964, 7.1.26)."""
    bits = builder.bitcast(x, _INTS)
    sign = builder.and_(bits, _integers(-(1 << 31)))
    size = builder.bitcast(builder.xor(bits, sign), _FLOATS)
    t = builder.fdiv(_numbers(1.0), fma(builder, size, _numbers(0.3275911), _numbers(1.0)))
    value = _numbers(1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        value = fma(builder, value, t, _numbers(factor))
    power = builder.fmul(builder.fmul(x, x), _numbers(-math.log2(math.e)))
    value = builder.fsub(_numbers(1.0), builder.fmul(builder.fmul(value, t), _exp2(builder, power, format)))
    return builder.bitcast(builder.or_(builder.bitcast(value, _INTS), sign), _FLOATS)
