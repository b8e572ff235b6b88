"""The compiled step's products are exact where they can be, for every shape of what is left over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

import numba

from gptrio.kernels.cpu_decode import amx as tiles
from gptrio.kernels.cpu_decode import structs as tables
from gptrio.kernels.cpu_decode.llvm_intrinsics import kernel, make_view
from gptrio.kernels.cpu_decode.low_rank import linear
from gptrio.kernels.cpu_decode.matmul import INT4_BY_INT8, workspace_for
from gptrio.kernels.formats import dequantize_int4
from tests.cases import where

by_tiles = pytest.mark.skipif(not tiles.is_available(), reason="the processor has no tiles")

_products = make_view(numba.from_dtype(tables.PRODUCT))
_FORMS = {torch.float32: tables.FLOAT32, torch.bfloat16: tables.BFLOAT16, torch.float16: tables.FLOAT16}


@kernel()
def run_linear(product, x, x_stride, y, y_stride, rows, adds, workspace, threads):
    """`multiply`, and what test_low_rank.py adds to it: compiling takes seconds."""
    p = numba.carray(_products(product), (1,))[0]
    for thread in range(threads):
        linear(p, x, x_stride, y, y_stride, rows, adds, workspace, thread, threads)


def product_of(
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    is_in_out: bool = False,
    scale: torch.Tensor | None = None,
    group: int = 1,
) -> Any:
    """A PRODUCT row of tensors, which must outlive it: int8 with one scale for an output, int4 with several."""
    row = np.zeros(1, tables.PRODUCT)
    row["format"] = _FORMS[weight.dtype] if scale is None else tables.INT8 if scale.dim() == 1 else tables.INT4
    row["is_in_out"], row["weight"], row["group"] = is_in_out, weight.data_ptr(), group
    row["inputs"], row["outputs"] = weight.shape if is_in_out else weight.shape[::-1]
    row["inputs"] *= 2 if weight.dtype is torch.uint8 else 1
    row["bias"] = 0 if bias is None else bias.data_ptr()
    row["scale"] = 0 if scale is None else scale.data_ptr()
    row["tiled"] = tiles.supports(row[0])
    return row


def multiplied(row: Any, x: torch.Tensor, before: torch.Tensor | None = None, threads: int = 1) -> torch.Tensor:
    y = torch.full((len(x), int(row["outputs"][0])), float("nan")) if before is None else before.clone()
    workspace = torch.empty(workspace_for(row[0]) // 4)
    strides = [4 * tensor.stride(0) for tensor in (x, y)]
    at = row.ctypes.data, x.data_ptr(), strides[0], y.data_ptr(), strides[1], len(x)
    run_linear(*at, before is not None, workspace.data_ptr(), threads)
    return y


def whole(*shape: int, most: int = 8) -> torch.Tensor:
    return torch.randint(-most, most + 1, shape).float()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("rows", "outputs"),
    where(lambda rows, outputs: outputs == 80 or rows in (1, 17), [1, 2, 5, 15, 16, 17, 32], [16, 80, 176]),
)
@pytest.mark.parametrize("is_in_out", [False, True])
@pytest.mark.parametrize("dtype", _FORMS)
def test_products_of_whole_numbers_are_exact(
    dtype: torch.dtype, is_in_out: bool, outputs: int, rows: int, threads: int
) -> None:
    x, weight, bias, before = whole(rows, 128), whole(128, outputs), whole(outputs), whole(rows, outputs)
    stored = (weight if is_in_out else weight.t().contiguous()).to(dtype)
    row = product_of(stored, bias, is_in_out)
    assert row["tiled"][0] == (dtype is torch.bfloat16 and tiles.is_available())
    assert torch.equal(multiplied(row, x, None, threads), x @ weight + bias)
    assert torch.equal(multiplied(row, x, before, threads), x @ weight + bias + before)


@pytest.mark.parametrize("rows", [1, 2, 17, 32])
@pytest.mark.parametrize("outputs", [16, 80, 179])
def test_int8_products_of_whole_numbers_are_exact(outputs: int, rows: int) -> None:
    x, codes, scale = whole(rows, 192, most=126), whole(outputs, 192, most=127), torch.rand(outputs) + 0.5
    x[:, 7] = 127  # the largest, whose code is itself
    stored = codes.to(torch.int8)
    row = product_of(stored, scale=scale)
    torch.testing.assert_close(multiplied(row, x), (x @ codes.t()) * scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rows", [1, 3, 4, 6])
@pytest.mark.parametrize("outputs", [16, 17])
@pytest.mark.parametrize(("inputs", "group"), [(64, 32), (64, 64), (192, 32), (192, 64), (256, 128), (384, 32)])
def test_int4_products_of_whole_numbers_are_exact(inputs: int, group: int, outputs: int, rows: int) -> None:
    codes = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8)
    scale = torch.randint(-3, 4, (outputs, inputs // group)).float().exp2().bfloat16()
    x, bias, before = whole(rows, inputs, most=126), whole(outputs), whole(rows, outputs)
    x[:, 7::64] = 127  # the largest of each part, whose code is itself
    want = x.double() @ dequantize_int4(codes, scale, torch.float32).double().t() + bias + before
    row = product_of(codes, bias, scale=scale, group=group)
    torch.testing.assert_close(multiplied(row, x, before).double(), want, rtol=1e-6, atol=1e-3)


@pytest.mark.skipif(not INT4_BY_INT8, reason="inputs of int4 products stay floats")
def test_inputs_of_int4_products_have_a_scale_for_each_128() -> None:
    codes = torch.randint(0, 256, (16, 128), dtype=torch.uint8)
    scale = torch.ones(16, 8).bfloat16()
    x = torch.randn(1, 256)
    x[:, 128:] *= 1e-4
    y = multiplied(product_of(codes, scale=scale, group=32), x)
    weight = dequantize_int4(codes, scale, torch.float32)
    small = y - multiplied(product_of(codes, scale=scale, group=32), x * (torch.arange(256) < 128))
    want = x[:, 128:] @ weight[:, 128:].t()
    assert (small - want).abs().max() < 0.02 * want.abs().max()


@by_tiles
def test_inputs_are_rounded_to_the_nearest_bfloat16() -> None:
    x, weight = torch.randn(20, 64), torch.eye(64).bfloat16()
    x[3, 5], x[4, 6], x[5, 7] = float("inf"), float("-inf"), torch.finfo(torch.float32).max
    y = multiplied(product_of(weight), x)
    plain = torch.ones(20, dtype=torch.bool)
    plain[3:6] = False
    assert torch.equal(y[plain], x[plain].bfloat16().float())


@by_tiles
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_row_that_is_not_a_number_spoils_no_other(precision: str) -> None:
    x, weight = whole(18, 64), whole(32, 64)
    x[:, 1] = 127
    x[2, 3] = float("nan")
    scale = None if precision == "bfloat16" else torch.ones(32)
    stored = weight.to(torch.bfloat16 if scale is None else torch.int8)
    row = product_of(stored, scale=scale)
    y, want = multiplied(row, x), x @ weight.t()
    assert y[2].isnan().all()
    assert torch.equal(y[torch.arange(18) != 2], want[torch.arange(18) != 2])


def test_a_row_of_zeros_stays_zero() -> None:
    codes = whole(32, 64, most=127).to(torch.int8)
    assert not multiplied(product_of(codes, scale=torch.ones(32)), torch.zeros(2, 64)).any()
