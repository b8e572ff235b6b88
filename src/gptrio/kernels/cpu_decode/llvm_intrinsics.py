"""What the compiled step needs below numba's language: vectors of 16 floats over raw memory, and atomic counters.

An intrinsic is a function whose calls numba replaces by LLVM code. `emitted` makes one of a Python function that writes
this code; `chosen` makes a function of several, selected by its first arguments. Addresses and byte strides are
int64. LLVM splits the vectors of 16 to what the processor has.
"""

from __future__ import annotations

import functools
import inspect
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from gptrio.kernels.cpu_decode.structs import BFLOAT16, FLOAT16, FLOAT32, INT4, LANES
from gptrio.kernels.formats import UNIT

MATHS = {"reassoc", "contract", "nsz"}  # sums in any order, but infinities and NaN as they are
kernel = partial(njit, nogil=True, error_model="numpy")  # a function for other compiled ones; it divides as numpy does

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT, _HALF = ir.FloatType(), ir.HalfType()
_FLOATS = ir.VectorType(FLOAT, LANES)
_INTS = ir.VectorType(I32, LANES)
_STORED = (FLOAT, I16, I16, I8)  # of the forms but int4
_SIZES = (4, 2, 2, 1)
_LINE = 64  # bytes of a cache line
_AHEAD = 1024  # distance of prefetches in bytes of int4 codes
_ROWS_AHEAD = 32  # distance of prefetches in rows of an (in, out) weight

Value = Any  # of llvmlite
Builder = Any
Emitter = Callable[..., Any]  # writes code, given the builder and the values of the arguments; may return a result


@functools.cache
def features() -> frozenset[str]:
    """What LLVM knows the processor to have, as "+avx512f", and to lack."""
    return frozenset(cpu_target.target_context.codegen().magic_tuple()[2].split(","))


def emitted(*kinds: Any, returns: Any = types.int64) -> Callable[[Emitter], Any]:
    """Make an intrinsic of an emitter.

    Args:
        kinds: numba's types of the arguments; int64 for each if none are given.
        returns: numba's type of the result; that of an emitter that returns None is 0, an int64.
    """

    def intrinsic_of(emit: Emitter) -> Any:
        count = len(inspect.signature(emit).parameters) - 1
        return _intrinsic(emit, returns(*(kinds or (types.int64,) * count)))

    return intrinsic_of


def chosen(cases: Mapping[Any, Emitter]) -> Any:
    """A function that runs the code of one of several emitters, which take the same int64 arguments.

    Its first arguments are the key of the case, a tuple; see `branch`.
    """
    key, first = next(iter(cases.items()))
    length = len(key)

    def emit(builder, *values):
        arguments = values[length:]
        branch(builder, values[:length], {key: partial(emit, builder, *arguments) for key, emit in cases.items()})

    count = length + len(inspect.signature(first).parameters) - 1
    run = _intrinsic(emit, types.int64(*(types.int64,) * count))

    @kernel()
    def choose(*arguments):  # a function of its own for LLVM: inside a loop, all cases together cost registers
        return run(*arguments)

    return choose


def branch(builder: Builder, choice: Sequence[Value], cases: Mapping[Any, Callable[[], None]]) -> None:
    """Code that runs what one of some functions writes: that of the key `choice`, or the last if there is no such key.

    Args:
        builder: takes the code.
        choice: int64 values.
        cases: functions that write code, by their keys, tuples of as many integers.
    """
    (key, emit), *others = cases.items()
    if not others:
        emit()
        return
    equal = [builder.icmp_signed("==", value, ir.Constant(I64, own)) for value, own in zip(choice, key, strict=True)]
    with builder.if_else(functools.reduce(builder.and_, equal)) as (then, otherwise):
        with then:
            emit()
        with otherwise:
            branch(builder, choice, dict(others))


def _intrinsic(emit: Emitter, signature: Any) -> Any:
    def typed(context: Any, *_: Any) -> Any:
        def generate(_: Any, builder: Builder, __: Any, values: Any) -> Value:
            result = emit(builder, *values)
            return ir.Constant(I64, 0) if result is None else result

        return signature, generate

    names = ("context", *(f"argument_{i}" for i in range(len(signature.args))))
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    cast(Any, typed).__signature__ = inspect.Signature(parameters)  # which numba reads
    return intrinsic(typed)


def dot_code(format: int, rows: int, lines: int) -> Emitter:
    """Code for the products of `lines` rows of a weight with `rows` inputs.

    Its arguments are (weight, stride, ahead, scales, scales_stride, group, x, x_stride, count, out): address of `count`
    weights (a multiple of 16, of 64 for int4), bytes to the next row of them, and to what will be read soon (but for
    int4); address of their scales, bytes to the next row's, and elements for each (int4 only); address of the inputs'
    floats, and bytes to the next input; address of floats that take the sums, all of the first input before those of
    the next.
    """

    def dot(builder, weight, stride, ahead, scales, scales_stride, group, x, x_stride, count, out):
        weights, inputs = apart(builder, weight, stride, lines), apart(builder, x, x_stride, rows)
        if format == INT4:
            steps = apart(builder, scales, scales_stride, lines)
            sums = _emit_int4_dot(builder, weights, steps, group, inputs, count)
        else:
            sums = _emit_dot(builder, format, weights, ahead, inputs, count)
        if len(sums) == LANES:
            builder.store(_totals(builder, sums), pointer(builder, out, _FLOATS), align=4)
        else:
            for i, vector in enumerate(sums):
                builder.store(total(builder, vector), pointer(builder, out, FLOAT, 4 * i))

    return dot


def apart(builder: Builder, address: Value, stride: Value, count: int) -> list[Value]:
    """`count` addresses, `stride` bytes apart."""
    return [builder.add(address, builder.mul(stride, ir.Constant(I64, i))) for i in range(count)]


def _emit_dot(
    builder: Builder, format: int, weights: list[Value], ahead: Value, inputs: list[Value], count: Value
) -> list[Value]:
    unroll = max(4 // (len(weights) * len(inputs)), 1)
    sums = [[[zeros(builder) for _ in range(unroll)] for _ in weights] for _ in inputs]

    def block(start: Value, parts: int) -> None:
        for part in range(parts):
            offset = builder.add(start, ir.Constant(I64, part * LANES))
            addresses = [after(builder, weight, offset, _SIZES[format]) for weight in weights]
            values = [load(builder, format, address) for address in addresses]
            if part * LANES * _SIZES[format] % _LINE == 0:
                for address in addresses:
                    prefetch(builder, builder.add(address, ahead))
            for own, x in zip(sums, inputs, strict=True):
                other = load(builder, FLOAT32, after(builder, x, offset, 4))
                for line, value in zip(own, values, strict=True):
                    _accumulate(builder, line[part], value, other)

    step = unroll * LANES
    bulk = builder.mul(builder.udiv(count, ir.Constant(I64, step)), ir.Constant(I64, step))
    with cgutils.for_range_slice(builder, ir.Constant(I64, 0), bulk, ir.Constant(I64, step), I64) as (start, _):
        block(start, unroll)
    with cgutils.for_range_slice(builder, bulk, count, ir.Constant(I64, LANES), I64) as (start, _):
        block(start, 1)
    return [_sum(builder, [builder.load(part) for part in parts]) for own in sums for parts in own]


def _emit_int4_dot(
    builder: Builder, weights: list[Value], scales: list[Value], group: Value, inputs: list[Value], count: Value
) -> list[Value]:
    chains = 2 if len(inputs) == 1 else 1
    sums = [[[zeros(builder) for _ in range(chains)] for _ in weights] for _ in inputs]
    with loop(builder, count, UNIT) as start:
        for line, (weight, scale) in enumerate(zip(weights, scales, strict=True)):
            prefetch(builder, builder.add(weight, builder.lshr(start, ir.Constant(I64, 1))), _AHEAD)
            for half, codes in enumerate(_int4_halves(builder, weight, start)):
                offset = builder.add(start, ir.Constant(I64, 32 * half))
                values = [_sixteen(builder, codes, part) for part in range(2)]
                bits = pointer(builder, after(builder, scale, builder.udiv(offset, group), 2), I16)
                factor = splat(builder, _bfloat(builder, builder.load(bits, align=2), I32, FLOAT), LANES)
                for own, x in zip(sums, inputs, strict=True):
                    address = after(builder, x, offset, 4)
                    first = builder.fmul(values[0], load(builder, FLOAT32, address))
                    second = load(builder, FLOAT32, builder.add(address, ir.Constant(I64, 4 * LANES)))
                    _accumulate(builder, own[line][half % chains], fma(builder, values[1], second, first), factor)
    return [_sum(builder, [builder.load(part) for part in parts]) for own in sums for parts in own]


def _int4_halves(builder: Builder, weight: Value, start: Value) -> tuple[Value, Value]:
    """The 64 codes from `start` on, as two times 32 signed bytes."""
    packed = pointer(builder, builder.add(weight, builder.lshr(start, ir.Constant(I64, 1))), ir.VectorType(I8, 32))
    codes = builder.load(packed, align=1)
    low = builder.and_(codes, splat(builder, ir.Constant(I8, 15), 32))
    high = builder.lshr(codes, splat(builder, ir.Constant(I8, 4), 32))
    eight = splat(builder, ir.Constant(I8, 8), 32)
    return builder.sub(low, eight), builder.sub(high, eight)


def axpy_code(format: int, inputs: int) -> Emitter:
    """Code that adds `inputs` rows of a weight, each times a number, to one result.

    Its arguments are (weight, stride, ahead, x, y, count): address of the first row of `count` weights (a multiple of
    16), bytes to the next row, and to what will be read soon; address of `inputs` floats; address of the result's
    floats.
    """

    def axpy(builder, weight, stride, ahead, x, y, count):
        rows = apart(builder, weight, stride, inputs)
        factors = [_spread(builder, builder.add(x, ir.Constant(I64, 4 * k))) for k in range(inputs)]
        with loop(builder, count, LANES) as start:
            line = after(builder, y, start, 4)
            total = load(builder, FLOAT32, line)
            for k in range(inputs):
                address = after(builder, rows[k], start, _SIZES[format])
                values = load(builder, format, address)
                prefetch(builder, builder.add(address, ahead))
                total = fma(builder, values, factors[k], total)
            builder.store(total, pointer(builder, line, _FLOATS), align=4)

    return axpy


def tile_code(format: int, rows: int, parts: int) -> Emitter:
    """Code that adds the products of `rows` inputs with 16 * `parts` columns of a weight to `rows` results.

    Its arguments are (weight, stride, x, x_stride, x_step, y, y_stride, count): address of the first row of the
    columns, and bytes to the next row; address of the inputs' `count` floats, bytes to the next input, and from float
    to float; address of the results' floats, and bytes to the next result.
    """

    def tile(builder, weight, stride, x, x_stride, x_step, y, y_stride, count):
        inputs, results = apart(builder, x, x_stride, rows), apart(builder, y, y_stride, rows)
        sums = [[zeros(builder) for _ in range(parts)] for _ in range(rows)]
        with loop(builder, count, 1) as start:
            line = builder.add(weight, builder.mul(stride, start))
            for offset in range(0, parts * LANES * _SIZES[format], _LINE):
                prefetch(builder, builder.add(line, builder.mul(stride, ir.Constant(I64, _ROWS_AHEAD))), offset)
            addresses = apart(builder, line, ir.Constant(I64, LANES * _SIZES[format]), parts)
            values = [load(builder, format, target) for target in addresses]
            for own, row in zip(sums, inputs, strict=True):
                factor = _spread(builder, builder.add(row, builder.mul(start, x_step)))
                for target, value in zip(own, values, strict=True):
                    _accumulate(builder, target, value, factor)
        for own, result in zip(sums, results, strict=True):
            for target, address in zip(own, apart(builder, result, ir.Constant(I64, 4 * LANES), parts), strict=True):
                total = builder.fadd(load(builder, FLOAT32, address), builder.load(target))
                builder.store(total, pointer(builder, address, _FLOATS), align=4)

    return tile


@contextmanager
def loop(builder: Builder, count: Value, step: int) -> Iterator[Value]:
    """A loop from 0 to `count`."""
    bounds = ir.Constant(I64, 0), count, ir.Constant(I64, step)
    with cgutils.for_range_slice(builder, *bounds, I64) as (start, _):
        yield start


def _spread(builder: Builder, address: Value) -> Value:
    """The float at an address, 16 times."""
    return splat(builder, builder.load(pointer(builder, address, FLOAT), align=4), LANES)


def load(builder: Builder, format: int, address: Value, beyond: int = 0) -> Value:
    """16 values of a format, `beyond` bytes after an address, as floats."""
    place = pointer(builder, address, ir.VectorType(_STORED[format], LANES), beyond)
    raw = builder.load(place, align=_SIZES[format])
    if format == FLOAT32:
        return raw
    if format == BFLOAT16:
        return _bfloat(builder, raw, _INTS, _FLOATS)
    if format == FLOAT16:
        return builder.fpext(builder.bitcast(raw, ir.VectorType(_HALF, LANES)), _FLOATS)
    return builder.sitofp(builder.sext(raw, _INTS), _FLOATS)


def _bfloat(builder: Builder, raw: Value, ints: Any, floats: Any) -> Value:
    """bfloat16 bits, one or many, to float32: they are its upper half."""
    sixteen = ir.Constant(I32, 16) if ints is I32 else splat(builder, ir.Constant(I32, 16), LANES)
    return builder.bitcast(builder.shl(builder.zext(raw, ints), sixteen), floats)


def _sixteen(builder: Builder, codes: Value, part: int) -> Value:
    """16 of 32 signed bytes as floats."""
    addresses = ir.Constant(_INTS, [ir.Constant(I32, part * LANES + i) for i in range(LANES)])
    chosen = builder.shuffle_vector(codes, ir.Constant(codes.type, ir.Undefined), addresses)
    return builder.sitofp(builder.sext(chosen, _INTS), _FLOATS)


def variable(builder: Builder, value: Value) -> Value:
    """A variable that begins with a value."""
    target = cgutils.alloca_once(builder, value.type)
    builder.store(value, target)
    return target


def zeros(builder: Builder, lanes: int = LANES) -> Value:
    """A variable of a vector of floats."""
    return variable(builder, ir.Constant(ir.VectorType(FLOAT, lanes), None))


def _accumulate(builder: Builder, target: Value, left: Value, right: Value) -> None:
    builder.store(fma(builder, left, right, builder.load(target)), target)


def fma(builder: Builder, left: Value, right: Value, addend: Value) -> Value:
    """left * right + addend."""
    return builder.fadd(builder.fmul(left, right, flags=("contract",)), addend, flags=("contract",))


def _sum(builder: Builder, parts: list[Value]) -> Value:
    while len(parts) > 1:
        parts = [builder.fadd(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return parts[0]


def total(builder: Builder, vector: Value) -> Value:
    """Sum of the floats of a vector."""
    kind = ir.FunctionType(FLOAT, [FLOAT, vector.type])
    name = f"llvm.vector.reduce.fadd.v{vector.type.count}f32"
    reduce = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(reduce, [ir.Constant(FLOAT, -0.0), vector], fastmath=("reassoc",))


def _totals(builder: Builder, vectors: list[Value]) -> Value:
    """Sums of the elements of 16 vectors, as one vector: neighbours are added, two vectors at a time, four times."""
    even, odd = (ir.Constant(_INTS, list(range(first, 2 * LANES, 2))) for first in (0, 1))
    while len(vectors) > 1:
        pairs = [vectors[i : i + 2] for i in range(0, len(vectors), 2)]
        vectors = [
            builder.fadd(builder.shuffle_vector(*pair, even), builder.shuffle_vector(*pair, odd)) for pair in pairs
        ]
    return vectors[0]


def prefetch(builder: Builder, address: Value, ahead: int = 0, near: int = 3) -> None:
    """Prefetch the cache line that will be read soon."""
    numbers = [ir.Constant(I32, number) for number in (0, near, 1)]  # to read, keep near, data
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(fetch, [pointer(builder, address, beyond=ahead), *numbers])


def splat(builder: Builder, value: Value, lanes: int) -> Value:
    """A vector of one value."""
    vector = ir.VectorType(value.type, lanes)
    if isinstance(value, ir.Constant):
        return ir.Constant(vector, [value] * lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), None)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def after(builder: Builder, address: Value, elements: Value, size: int) -> Value:
    """The address that is so many elements of `size` bytes further on."""
    return builder.add(address, builder.mul(elements, ir.Constant(I64, size)))


def pointer(builder: Builder, address: Value, element: Any = I8, beyond: int = 0) -> Value:
    """A pointer to an element `beyond` bytes after an address."""
    return builder.inttoptr(builder.add(address, ir.Constant(I64, beyond)), element.as_pointer())


@emitted(types.float32, returns=types.float32)
def power_of_two(builder, exponent):
    """2 to a whole float32 between -126 and 127."""
    biased = builder.add(builder.fptosi(exponent, I32), ir.Constant(I32, 127))
    return builder.bitcast(builder.shl(biased, ir.Constant(I32, 23)), FLOAT)


@emitted(types.uint32, returns=types.float32)
def float_of(builder, bits):
    """The float32 of 32 bits."""
    return builder.bitcast(bits, FLOAT)


@emitted(returns=types.float32)
def load_float32(builder, address):
    """The float32 at an address."""
    return builder.load(pointer(builder, address, FLOAT), align=4)


@emitted(returns=types.float32)
def load_float16(builder, address):
    """The float16 at an address, as float32."""
    return builder.fpext(builder.load(pointer(builder, address, _HALF), align=2), FLOAT)


@emitted(types.int64, types.float32)
def store_float32(builder, address, value):
    """Write a float32 at an address."""
    builder.store(value, pointer(builder, address, FLOAT), align=4)


@emitted(types.int64, types.float32)
def store_float16(builder, address, value):
    """Write a float32 as the nearest float16 at an address."""
    builder.store(builder.fptrunc(value, _HALF), pointer(builder, address, _HALF), align=2)


def make_view(element: Any) -> Callable[[int], Any]:
    """An intrinsic that takes an address for a pointer to an element of some numba type."""

    @intrinsic
    def view(context: Any, address: Any) -> Any:
        kind = types.CPointer(element)

        def generate(context: Any, builder: Builder, __: Any, arguments: Any) -> Value:
            return builder.inttoptr(arguments[0], context.get_value_type(kind))

        return kind(types.int64), generate

    return view


@emitted()
def add_and_get(builder, address, amount):
    """Add to the int64 at an address, as one act among threads; its new value."""
    return builder.add(builder.atomic_rmw("add", pointer(builder, address, I64), amount, "seq_cst"), amount)


@emitted()
def get(builder, address):
    """The int64 at an address, as other threads left it."""
    return builder.load_atomic(pointer(builder, address, I64), "seq_cst", 8)


@emitted()
def put(builder, address, value):
    """Write the int64 at an address for other threads to see."""
    builder.store_atomic(value, pointer(builder, address, I64), "seq_cst", 8)


@emitted(*(types.int64,) * 3, returns=types.boolean)
def replace(builder, address, expected, value):
    """Write the int64 at an address if it is as expected; whether it was."""
    return builder.extract_value(builder.cmpxchg(pointer(builder, address, I64), expected, value, "seq_cst"), 1)


@emitted()
def pause(builder):
    """Tell the processor that this thread waits in a loop."""
    if platform.machine() in ("x86_64", "AMD64"):
        wait = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, wait, "llvm.x86.sse2.pause"), [])
