"""Products by tiles, for processors with AMX: 16 rows of 64 bytes of a weight times up to 16 inputs.

A tile register holds 16 rows of 64 bytes. C (m, n) += A (m, k) @ B (k, n) reads A by rows, and B as groups of 4 bytes
along k: two bfloat16 values, or four int8 ones (Intel 64 Architectures Software Developer's Manual, volume 1, chapter
18). A weight (out, in) is an A as it is stored, with the inputs as B and results (out, rows). A weight (in, out)
becomes a B when two of its rows are interleaved, with the inputs as A and results (rows, out).
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from llvmlite import ir
from numba import float32
from numba.core import cgutils

from gptrio.kernels.cpu_decode.arrays import floats, integers, largest, round_to_bfloat16, round_to_int8, small_integers
from gptrio.kernels.cpu_decode.llvm_intrinsics import (
    I8,
    I16,
    I32,
    I64,
    MATHS,
    Builder,
    Emitter,
    Value,
    after,
    apart,
    chosen,
    emitted,
    features,
    kernel,
    load_float32,
    loop,
    pointer,
    prefetch,
    store_float32,
)
from gptrio.kernels.cpu_decode.structs import BFLOAT16, INT8

TILE, LINE = 1024, 64  # bytes of a tile, and of its rows
SIDE = 16  # rows of a tile
MOST = 2 * SIDE  # inputs that are multiplied together

# Places in a thread's working memory, in bytes, after its sums.
SETUP, SCALES, TOTALS, TURNED, PACKED = 64, 128, 256, 256 + 4 * TILE, 256 + 5 * TILE
_QUADS = ir.VectorType(I32, SIDE)
_PRODUCT = {BFLOAT16: "tdpbf16ps", INT8: "tdpbssd"}
_INPUTS, _WEIGHTS = 4, 6  # tile registers: results from 0 on, two of inputs, two of weights


@functools.cache
def is_available() -> bool:
    """Whether the processor has tiles, LLVM knows it, and this process may use them."""
    known = {"+amx-tile", "+amx-bf16", "+amx-int8", "+avx512bw"} <= features()
    ask = getattr(torch.cpu, "_init_amx", None)  # asks the system for permission
    return known and ask is not None and bool(ask())


def supports(p: Any) -> bool:
    """Whether the weight of a PRODUCT row can be multiplied by tiles here."""
    return p["format"] in _PRODUCT and p["inputs"] % LINE == 0 and is_available()


def workspace_for(p: Any) -> int:
    """Bytes of working memory that a thread needs for a PRODUCT row that `supports` accepts."""
    packed = 2 * MOST * p["inputs"]
    return int(PACKED + packed + (4 * MOST * p["outputs"] if p["is_in_out"] else packed))


def _call(builder: Builder, name: str, *arguments: Value) -> None:
    """Call an intrinsic that returns nothing; whole numbers of Python are tile registers."""
    values = [ir.Constant(I8, value) if isinstance(value, int) else value for value in arguments]
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), values)


def _load_tile(builder: Builder, tile: int, address: Value, stride: Value | None = None) -> None:
    """Load a tile register from rows `stride` bytes apart, 64 by default."""
    _call(builder, "tileloadd64", tile, pointer(builder, address), ir.Constant(I64, LINE) if stride is None else stride)


def _store_tile(builder: Builder, tile: int, address: Value, stride: Value | None = None) -> None:
    """Store a tile register to rows `stride` bytes apart, 64 by default."""
    _call(
        builder, "tilestored64", tile, pointer(builder, address), ir.Constant(I64, LINE) if stride is None else stride
    )


@emitted()
def _set_up(builder, address):
    """Give tile registers the sizes that are written at an address."""
    _call(builder, "ldtilecfg", pointer(builder, address))


@emitted()
def release(builder):
    """Free the tile registers."""
    _call(builder, "tilerelease")


@emitted()
def transpose(builder, source, stride, target):
    """Transpose 16 rows of 16 groups of 4 bytes, `stride` bytes apart, into rows of 64 bytes."""
    rows = [
        builder.load(pointer(builder, address, _QUADS), align=1) for address in apart(builder, source, stride, SIDE)
    ]
    for i, row in enumerate(transposed(builder, rows)):
        builder.store(row, pointer(builder, target, _QUADS, LINE * i), align=4)


def transposed(builder: Builder, rows: list[Value]) -> list[Value]:
    """The columns of 16 vectors of 16 groups of 4 bytes, by a perfect shuffle of the rows, four times over."""
    for _step in range(4):
        halves = zip(rows[: SIDE // 2], rows[SIDE // 2 :], strict=True)
        rows = [interleaved(builder, *pair, SIDE, part) for pair in halves for part in range(2)]
    return rows


def interleaved(builder: Builder, left: Value, right: Value, count: int, part: int, length: int = SIDE // 2) -> Value:
    """The elements of two vectors of `count` in turn, `length` of each from `part * length` on."""
    addresses = [first + part * length + i for i in range(length) for first in (0, count)]
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, 2 * length), addresses))


def rows_code(format: int, groups: int, blocks: int) -> Emitter:
    """Code for the products of 16 * `groups` rows with `blocks` times 16 columns that lie as tiles, or fewer.

    Its arguments are (rows, stride, group, step, tiles, count, out, out_stride): address of the first row, and bytes to
    the next row, to the next 16 rows, and to the next 64 bytes of each; address of the tiles, the blocks side by side,
    and their number along a row; address of the results, 4 bytes each, and bytes to their next row.
    """

    def product(builder, rows, stride, group, step, tiles, count, out, out_stride):
        first = apart(builder, rows, group, groups)
        for index in range(groups * blocks):
            _call(builder, "tilezero", index)
        with loop(builder, count, 1) as number:
            start, columns = builder.mul(number, step), after(builder, tiles, number, TILE * blocks)
            for b, address in enumerate(apart(builder, columns, ir.Constant(I64, TILE), blocks)):
                _load_tile(builder, _INPUTS + b, address)
            for g in range(groups):
                _load_tile(builder, _WEIGHTS + g, builder.add(first[g], start), stride)
                for b in range(blocks):
                    _call(builder, _PRODUCT[format], g * blocks + b, _WEIGHTS + g, _INPUTS + b)
        for g in range(groups):
            line = after(builder, out, out_stride, SIDE * g)
            for b, address in enumerate(apart(builder, line, ir.Constant(I64, LINE), blocks)):
                _store_tile(builder, g * blocks + b, address, out_stride)

    return product


def _columns_code(groups: int, blocks: int) -> Emitter:
    """Code that adds products of inputs with 32 rows and 16 * `groups` columns of a bfloat16 weight to results.

    Its arguments are (weight, stride, x, x_stride, out, workspace): address of the first row of the columns, and bytes
    to the next; address of the inputs' 32 bfloat16 values, and bytes to the next input; addresses of groups * blocks
    tiles of results, and of `groups` tiles of working memory.
    """
    together = min(groups, 2)  # what a line of memory holds
    pair = ir.VectorType(I16, SIDE * together)

    def interleave(builder, lines, workspace):
        """Interleave rows in pairs, for the first 32 of a part of the columns, and prefetch the next."""
        for line in lines[2 * SIDE :]:
            prefetch(builder, line, near=2)
        values = [builder.load(pointer(builder, line, pair), align=2) for line in lines[: 2 * SIDE]]
        for j in range(SIDE):
            for g in range(together):
                row = interleaved(builder, values[2 * j], values[2 * j + 1], SIDE * together, g, SIDE)
                builder.store(row, pointer(builder, workspace, row.type, TILE * g + LINE * j), align=2)

    def product(builder, weight, stride, x, x_stride, out, workspace):
        tile = ir.Constant(I64, TILE)
        tiles, results = apart(builder, workspace, tile, groups), apart(builder, out, tile, groups * blocks)
        for b in range(blocks):
            _load_tile(builder, _INPUTS + b, after(builder, x, x_stride, SIDE * b), x_stride)
        for g in range(groups):
            if g % together == 0:
                first = builder.add(weight, ir.Constant(I64, 2 * SIDE * g))
                interleave(builder, apart(builder, first, stride, 4 * SIDE), tiles[g])
            own = _WEIGHTS + g % 2
            _load_tile(builder, own, tiles[g])
            for b in range(blocks):
                index = g * blocks + b
                _load_tile(builder, index % _INPUTS, results[index])
                _call(builder, _PRODUCT[BFLOAT16], index % _INPUTS, _INPUTS + b, own)
                _store_tile(builder, index % _INPUTS, results[index])

    return product


# products by (format, groups, blocks), and by (groups, blocks)
_rows_product = chosen({case: rows_code(*case) for case in itertools.product(_PRODUCT, (1, 2), (1, 2))})
_columns_product = chosen({case: _columns_code(*case) for case in itertools.product((1, 4), (1, 2))})


@kernel()
def prepare_tiles(setup, rows, blocks, is_in_out):
    """Write and load the sizes of the tile registers: `rows` inputs, in so many blocks of 16 or fewer."""
    sizes = small_integers(setup, LINE)
    sizes[:] = 0
    sizes[0] = 1  # the only palette
    for tile in range(_WEIGHTS + 2):
        own = SIDE if tile >= _WEIGHTS else min(rows - SIDE * (tile % blocks), SIDE)
        sizes[16 + 2 * tile] = LINE if is_in_out or tile >= _WEIGHTS else 4 * own  # bytes of a row
        sizes[48 + tile] = own if is_in_out else SIDE  # rows
    _set_up(setup)


@kernel()
def _pack_int8(x, x_stride, rows, inputs, scales, out):
    """Inputs as int8, row by row, and the scale of each row."""
    for r in range(rows):
        maximum = largest(x + r * x_stride, inputs)
        store_float32(scales + 4 * r, maximum / float32(127))
        round_to_int8(x + r * x_stride, out + r * inputs, inputs, float32(127) / maximum)


@kernel()
def _multiply(p, x, x_stride, y, y_stride, rows, adds, workspace, start, end):
    """Products of at most 32 inputs with the outputs from `start`, a multiple of 16, to `end`; see `matmul.multiply`.

    Returns:
        The first output that is not done, as fewer than 16 were left.
    """
    blocks = (rows + SIDE - 1) // SIDE
    line = p.inputs if p.format == INT8 else 2 * p.inputs
    packed = workspace + PACKED
    if p.format == INT8:
        _pack_int8(x, x_stride, rows, p.inputs, workspace + SCALES, packed)
    else:
        for r in range(rows):
            round_to_bfloat16(x + r * x_stride, packed + r * line, p.inputs)
    prepare_tiles(workspace + SETUP, rows, blocks, p.is_in_out)
    further = packed + MOST * line
    if p.is_in_out:
        _multiply_in_out(p, packed, line, y, y_stride, rows, blocks, adds, workspace, further, start, end)
    else:
        _multiply_out_in(p, packed, line, y, y_stride, rows, blocks, adds, workspace, further, start, end)
    release()
    return end - (end - start) % SIDE


@kernel()
def _multiply_in_out(p, x, line, y, y_stride, rows, blocks, adds, workspace, totals, start, end):
    stride, tiles = 2 * p.outputs, (end - start) // SIDE
    floats(totals, tiles * blocks * TILE // 4)[:] = 0
    for i in range(0, p.inputs, 2 * SIDE):
        g = 0
        while g < tiles:
            groups = 4 if g + 4 <= tiles else 1
            weight = p.weight + i * stride + 2 * (start + SIDE * g)
            out = totals + TILE * blocks * g
            _columns_product(groups, blocks, weight, stride, x + 2 * i, line, out, workspace + TOTALS)
            g += groups
    for g in range(tiles):
        for b in range(blocks):
            target, count = y + SIDE * b * y_stride, min(rows - SIDE * b, SIDE)
            _finish(p, totals + TILE * (g * blocks + b), target, y_stride, count, adds, 0, start + SIDE * g)


@kernel()
def _multiply_out_in(p, x, line, y, y_stride, rows, blocks, adds, workspace, tiles, start, end):
    for t in range(line // LINE):
        for b in range(blocks):
            transpose(x + b * SIDE * line + LINE * t, line, tiles + TILE * (t * blocks + b))
    o = start
    while o + SIDE <= end:
        groups = 2 if o + 2 * SIDE <= end else 1
        weight, totals, totals_stride = p.weight + o * line, workspace + TOTALS, LINE * blocks
        count, group = line // LINE, SIDE * line
        _rows_product(p.format, groups, blocks, weight, line, group, LINE, tiles, count, totals, totals_stride)
        for g in range(groups):
            for b in range(blocks):
                target, own = y + SIDE * b * y_stride, min(rows - SIDE * b, SIDE)
                transpose(totals + SIDE * g * totals_stride + LINE * b, totals_stride, workspace + TURNED)
                scales = workspace + SCALES + 4 * SIDE * b
                _finish(p, workspace + TURNED, target, y_stride, own, adds, scales, o + SIDE * g)
        o += SIDE * groups


@kernel(fastmath=MATHS)
def _finish(p, totals, y, y_stride, rows, adds, scales, o):
    """Scale 16 totals of each row (of int8, by the rows' `scales`), add the bias, and store or add them."""
    for r in range(rows):
        target, sums = floats(y + r * y_stride + 4 * o, SIDE), floats(totals + LINE * r, SIDE)
        if p.format == INT8:
            whole, factors = integers(totals + LINE * r, SIDE), floats(p.scale + 4 * o, SIDE)
            scale = load_float32(scales + 4 * r)
            for k in range(SIDE):
                sums[k] = float32(whole[k]) * scale * factors[k]
        if p.bias:
            bias = floats(p.bias + 4 * o, SIDE)
            for k in range(SIDE):
                sums[k] += bias[k]
        for k in range(SIDE):
            target[k] = sums[k] + target[k] if adds else sums[k]


@kernel()
def _multiply_nothing(p, x, x_stride, y, y_stride, rows, adds, workspace, start, end):
    return start


multiply_tiled = _multiply if is_available() else _multiply_nothing
