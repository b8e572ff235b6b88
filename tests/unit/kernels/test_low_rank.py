"""Low-rank updates of a product are exact where they can be, for every rank, number of rows and threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba")


from gptrio.kernels.cpu_decode import low_rank, matmul
from gptrio.kernels.cpu_decode import structs as tables
from tests.cases import where
from tests.unit.kernels.test_matmul import product_of, run_linear, whole

_FORMATS = {torch.float32: tables.FLOAT32, torch.bfloat16: tables.BFLOAT16, torch.float16: tables.FLOAT16}
SENTINEL = 77.0


def updated(
    row: Any, updates: list[tuple[torch.Tensor, torch.Tensor, float]], x: torch.Tensor, threads: int
) -> torch.Tensor:
    """Outputs of a PRODUCT row with updates (A, B, scaling), in a workspace that ends where it should."""
    table = np.zeros(len(updates), tables.UPDATE)
    for own, (a, b, scaling) in zip(table, updates, strict=True):
        own["a"], own["b"], own["format"], own["rank"] = a.data_ptr(), b.data_ptr(), _FORMATS[a.dtype], len(a)
        own["scaling"] = scaling
    row["updates"], row["num_updates"] = table.ctypes.data, len(table)
    sizes = [matmul.workspace_for(row[0]), *(low_rank.workspace_for(len(a)) for a, *_ in updates)]
    workspace = torch.full((max(sizes) // 4 + 64,), SENTINEL)
    y = torch.full((len(x), int(row["outputs"][0])), float("nan"))
    strides = [4 * tensor.stride(0) for tensor in (x, y)]
    at = row.ctypes.data, x.data_ptr(), strides[0], y.data_ptr(), strides[1], len(x)
    run_linear(*at, False, workspace.data_ptr(), threads)
    assert (workspace[-64:] == SENTINEL).all()
    return y


@pytest.mark.parametrize(
    ("rank", "rows"), where(lambda rank, rows: rows == 3 or rank == 7, [1, 2, 7, 16, 35], [1, 3, 32])
)
@pytest.mark.parametrize("is_in_out", [False, True])
@pytest.mark.parametrize("dtype", _FORMATS)
def test_updates_of_whole_numbers_are_exact(dtype: torch.dtype, is_in_out: bool, rows: int, rank: int) -> None:
    x, weight, bias = whole(rows, 32, most=3), whole(32, 80), whole(80)
    stored = weight if is_in_out else weight.t().contiguous()
    pairs = [
        (whole(rank, 32, most=2), whole(80, rank, most=2), 0.5),
        (whole(3, 32, most=2), whole(80, 3, most=2), -2.0),
    ]
    want = x @ weight + bias + sum(scaling * (x @ a.t() @ b.t()) for a, b, scaling in pairs)
    stored_pairs = [(a.to(dtype), b.to(dtype), scaling) for a, b, scaling in pairs]
    for threads in (1, 3):
        assert torch.equal(updated(product_of(stored, bias, is_in_out), stored_pairs, x, threads), want)


def test_outputs_need_not_be_a_multiple_of_16() -> None:
    x, weight, a, b = whole(2, 32), whole(37, 32), whole(5, 32, most=2), whole(37, 5, most=2)
    for threads in (1, 2, 5):
        got = updated(product_of(weight), [(a, b, 1.0)], x, threads)
        assert torch.equal(got, x @ weight.t() + x @ a.t() @ b.t())
