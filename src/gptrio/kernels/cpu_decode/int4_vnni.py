"""Products with int4 codes on the processor's int8 units (VNNI), where it has them.

Inputs become int8, 128 of them by a scale of their own. The codes stay what is stored, 0 to 15, which stands for -8 to
7: the sums start at -8 times the sums of the inputs.
"""

from __future__ import annotations

from functools import partial

from llvmlite import ir
from numba import float32, int32
from numba.core import cgutils

from gptrio.kernels import GROUP_SIZES
from gptrio.kernels.cpu_decode.arrays import floats, integers, largest, round_to_int8, small_integers
from gptrio.kernels.cpu_decode.llvm_intrinsics import (
    FLOAT,
    I8,
    I16,
    I32,
    I64,
    Builder,
    Emitter,
    Value,
    after,
    apart,
    branch,
    features,
    fma,
    kernel,
    pointer,
    prefetch,
    splat,
    total,
    zeros,
)
from gptrio.kernels.formats import UNIT

PART = 2 * UNIT  # inputs that share a scale
PACKED = 320  # bytes of so many packed inputs: low and high int8, low and high first sums, scale, each in a line
_LINE = 64  # bytes
_AHEAD = 1024  # distance of prefetches in bytes of codes


def is_available() -> bool:
    """Whether the processor has these units, for 64 bytes at once."""
    return {"+avx512vnni", "+avx512bw"} <= features()


def nibble_dot_code(rows: int, lines: int) -> Emitter:
    """Code for the products of `lines` rows of int4 codes with `rows` inputs that `pack_rows` packed.

    Its arguments are those of `dot_code`; `ahead` has no effect.
    """

    def dot(builder, weight, stride, ahead, scales, scales_stride, group, x, x_stride, count, out):
        codes, steps = apart(builder, weight, stride, lines), apart(builder, scales, scales_stride, lines)
        inputs = apart(builder, x, x_stride, rows)
        sizes = {(size,): partial(_emit_dot, builder, size, codes, steps, inputs, count, out) for size in GROUP_SIZES}
        branch(builder, (group,), sizes)

    return dot


def _emit_dot(builder, group, codes, steps, inputs, count, out):
    """Code for the products of rows of codes, in groups of a known size, with packed inputs."""
    zero, part = ir.Constant(I64, 0), ir.Constant(I64, PART)
    bulk = builder.mul(builder.udiv(count, part), part)
    totals = []
    for units, bounds in ((2, (zero, bulk)), (1, (bulk, count))):
        sums = [[zeros(builder, 8 * units) for _ in codes] for _ in inputs]
        with cgutils.for_range_slice(builder, *bounds, part, I64) as (start, _):
            _add(builder, group, units, start, codes, steps, inputs, sums)
        totals.append([total(builder, builder.load(offset)) for own in sums for offset in own])
    for i, parts in enumerate(zip(*totals, strict=True)):
        builder.store(builder.fadd(*parts), pointer(builder, out, FLOAT, 4 * i))


def _add(builder, group, units, start, codes, steps, inputs, sums):
    """Add the products of one or two units from `start` on."""
    offset = builder.lshr(start, ir.Constant(I64, 1))
    packed = builder.mul(builder.udiv(start, ir.Constant(I64, PART)), ir.Constant(I64, PACKED))
    for line, (code, step) in enumerate(zip(codes, steps, strict=True)):
        address = builder.add(code, offset)
        prefetch(builder, address, _AHEAD)
        factors = _factors(builder, group, units, after(builder, step, builder.udiv(start, ir.Constant(I64, group)), 2))
        for own, x in zip(sums, inputs, strict=True):
            first = builder.add(x, packed)
            low, high = (
                builder.sitofp(_products(builder, units, half, first), ir.VectorType(FLOAT, 8 * units))
                for half in _halves(builder, units, address)
            )
            scale = builder.load(pointer(builder, first, FLOAT, 4 * _LINE), align=4)
            together = fma(builder, high, factors[1], builder.fmul(low, factors[0]))
            known = builder.load(own[line])
            builder.store(fma(builder, together, splat(builder, scale, 8 * units), known), own[line])


def _halves(builder: Builder, units: int, address: Value) -> list[tuple[int, Value]]:
    """Low and high codes of one or two units, as groups of four."""
    raw = builder.load(pointer(builder, address, ir.VectorType(I8, 32 * units)), align=1)
    low = builder.and_(raw, splat(builder, ir.Constant(I8, 15), 32 * units))
    high = builder.lshr(raw, splat(builder, ir.Constant(I8, 4), 32 * units))
    return [(i, builder.bitcast(half, ir.VectorType(I32, 8 * units))) for i, half in enumerate((low, high))]


def _products(builder: Builder, units: int, half: tuple[int, Value], x: Value) -> Value:
    """Sums of four products of codes with packed inputs, and of what belongs to them."""
    which, codes = half
    kind = codes.type
    values, first = (builder.load(pointer(builder, x, kind, _LINE * (which + offset)), align=4) for offset in (0, 2))
    name = f"llvm.x86.avx512.vpdpbusd.{256 * units}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, [first, codes, values])


def _factors(builder: Builder, group: int, units: int, address: Value) -> list[Value]:
    """The scales of low and of high codes, each for 8 sums of a unit."""
    count = max(units * UNIT // group, 1)
    bits = builder.load(pointer(builder, address, ir.VectorType(I16, count)), align=2)
    wide = builder.zext(bits, ir.VectorType(I32, count))
    shifted = builder.shl(wide, ir.Constant(wide.type, [16] * count))
    scales = builder.bitcast(shifted, ir.VectorType(FLOAT, count))
    chosen = ([(UNIT * unit + half) // group for unit in range(units) for _ in range(8)] for half in (0, UNIT // 2))
    return [
        builder.shuffle_vector(scales, scales, ir.Constant(ir.VectorType(I32, 8 * units), offsets))
        for offsets in chosen
    ]


@kernel()
def packed_stride(inputs):
    """Bytes of a packed input."""
    return (inputs + PART - 1) // PART * PACKED


@kernel()
def pack_rows(x, x_stride, rows, inputs, target):
    """Write inputs (at an address, row by row) as int8 in the order of the codes, with their scales and first sums."""
    for r in range(rows):
        for start in range(0, inputs, PART):
            count = min(PART, inputs - start)
            values = x + r * x_stride + 4 * start
            part = target + r * packed_stride(inputs) + start // PART * PACKED
            maximum = largest(values, count)
            floats(part + 4 * _LINE, 1)[0] = maximum / float32(127)
            factor = float32(127) / maximum
            for unit in range(count // UNIT):
                for half in range(2):
                    own = part + _LINE * half + 32 * unit
                    round_to_int8(values + 4 * (UNIT * unit + 32 * half), own, 32, factor)
                    packed = small_integers(own, 32)
                    sums = integers(part + _LINE * (2 + half) + 32 * unit, 8)
                    for i in range(8):
                        four = int32(packed[4 * i]) + packed[4 * i + 1] + packed[4 * i + 2] + packed[4 * i + 3]
                        sums[i] = -8 * four
