"""Arrays of numbers at raw addresses, for loops that LLVM turns into vectors by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, float32, int32, types, uint32

from gptrio.kernels.cpu_decode.llvm_intrinsics import MATHS, float_of, kernel, load_float16, make_view, store_float32
from gptrio.kernels.cpu_decode.structs import BFLOAT16


def _make_array(element: Any) -> Callable[[int, int], Any]:
    view = make_view(element)

    @kernel()
    def array(address, count):
        return carray(view(address), (count,))

    return array


floats, words, integers, halves = (
    _make_array(element) for element in (types.float32, types.uint32, types.int32, types.uint16)
)
small_integers, long_integers = _make_array(types.int8), _make_array(types.int64)


@kernel()
def round_to_bfloat16(source, target, count):
    """Write floats at an address as the nearest bfloat16 at another: ties to even, NaN stays NaN."""
    numbers, rounded = words(source, count), halves(target, count)
    for i in range(count):
        bits = numbers[i]
        nearest = (bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16)
        rounded[i] = uint32(0x7FC0) if bits & uint32(0x7FFFFFFF) > uint32(0x7F800000) else nearest


@kernel()
def widen(format, source, target, count):
    """Write numbers of a 16 bit format at an address as floats at another."""
    numbers, bits = halves(source, count), words(target, count)
    for i in range(count):
        if format == BFLOAT16:
            bits[i] = uint32(numbers[i]) << uint32(16)
        else:
            store_float32(target + 4 * i, load_float16(source + 2 * i))


@kernel()
def largest(source, count):
    """The largest size of the floats at an address, or 2 ** -100 if all are smaller; NaN if one is."""
    numbers, maximum = words(source, count), uint32((127 - 100) << 23)
    for i in range(count):
        maximum = max(maximum, numbers[i] & uint32(0x7FFFFFFF))  # sizes of floats are in the order of their bits
    return float_of(maximum)


@kernel(fastmath=MATHS)
def round_to_int8(source, target, count, factor):
    """Write floats at an address, times a factor that brings them to [-127, 127], as the nearest int8 at another."""
    numbers, rounded = floats(source, count), small_integers(target, count)
    for i in range(count):
        rounded[i] = int32(np.floor(numbers[i] * factor + float32(0.5)))
