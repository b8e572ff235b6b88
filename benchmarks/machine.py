"""How fast does this machine read memory and multiply matrices? The limits that the other benchmarks are held to.

python benchmarks/machine.py --threads 2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from _results import print_table, save
from gptrio.kernels.linear import can_pack_cached

READ_BYTES = 512 * 2**20
ROWS = 1024  # of the matrix products
PATIENCE = 0.6  # seconds for each measurement
RATES = ("float32", "bfloat16", "float16", "int8")


def limits(threads: int) -> dict[str, float]:
    """Measured limits.

    Args:
        threads: of torch.

    Returns:
        "read" in GB/s, and "float32", "bfloat16", "float16", "int8" matrix products of 1,024 rows in GFLOP/s.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = {"read": max(READ_BYTES / _best(way) / 1e9 for way in readings())}
        for name in RATES:
            found[name] = rate(name)
    finally:
        torch.set_num_threads(before)
    return found


def rate(dtype: str) -> float:
    """Matrix products of 1,024 rows in GFLOP/s, by the fastest way and torch's threads."""
    return max(_rate(product) for product in products(dtype))


def readings() -> list[Callable[[], Tensor]]:
    """Ways to read a matrix once."""
    matrix, vector = torch.ones(READ_BYTES // 2**14, 2**12), torch.ones(2**12)
    return [matrix.sum, lambda: matrix @ vector]


def products(dtype: str) -> list[Callable[[], Tensor]]:
    """Ways to multiply a matrix of `ROWS` rows with a GPT-2 layer's: some pay on one processor, some on another."""
    if dtype == "int8":
        codes, weight = torch.ones(ROWS, 768, dtype=torch.int8), torch.ones(768, 3072, dtype=torch.int8)
        rows = weight.t().contiguous()
        return [lambda: torch._int_mm(codes, weight), lambda: torch._int_mm(codes, rows.t())]
    x, weight = torch.randn(ROWS, 768), torch.randn(3072, 768)
    x, weight = x.to(getattr(torch, dtype)), weight.to(getattr(torch, dtype))
    ways: list[Callable[[], Tensor]] = [lambda: torch.nn.functional.linear(x, weight)]
    if can_pack_cached(x.dtype):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))
    return ways


def _rate(product: Callable[[], object]) -> float:
    return 2 * ROWS * 768 * 3072 / _best(product) / 1e9


def _best(call: Callable[[], object]) -> float:
    """Seconds of a call when nothing disturbs it: the least of all that fit into `PATIENCE`."""
    call()
    begun, times = time.perf_counter(), list[float]()
    while len(times) < 5 or time.perf_counter() - begun < PATIENCE:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print the limits and write the JSON file."""
    parser = argparse.ArgumentParser(description="Read bandwidth and matrix rates of this machine.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    found = limits(arguments.threads)
    units = {"read": "GB/s"}
    print_table(
        ["", "measured"], [[name, f"{value:.1f} {units.get(name, 'GFLOP/s')}"] for name, value in found.items()]
    )
    save("machine", {"threads": arguments.threads, "limits": found}, arguments.out)


if __name__ == "__main__":
    main()
