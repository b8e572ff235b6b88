"""How fast does this machine read memory and multiply matrices? The limits that the other benchmarks are held to.

python benchmarks/machine.py --threads 2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from _results import print_table, save

READ_BYTES = 512 * 2**20
ROWS = 1024  # of the matrix products
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def limits(threads: int, repeats: int = 9) -> dict[str, float]:
    """Measured limits.

    Args:
        threads: of torch.
        repeats: of which the best counts, as disturbances only slow things down.

    Returns:
        "read" in GB/s, and "float32", "bfloat16", "float16", "int8" matrix products of 1,024 rows in GFLOP/s.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        data = torch.ones(READ_BYTES // 8, dtype=torch.float64)
        found = {"read": READ_BYTES / _best(data.sum, repeats) / 1e9}
        del data
        for name, dtype in DTYPES.items():
            x, weight = torch.randn(ROWS, 768).to(dtype), torch.randn(3072, 768).to(dtype)
            found[name] = _rate(lambda x=x, weight=weight: torch.nn.functional.linear(x, weight), repeats)
        codes, weight = torch.ones(ROWS, 768, dtype=torch.int8), torch.ones(3072, 768, dtype=torch.int8)
        found["int8"] = _rate(lambda: torch._int_mm(codes, weight.t()), repeats)
    finally:
        torch.set_num_threads(before)
    return found


def _rate(product: Callable[[], object], repeats: int) -> float:
    return 2 * ROWS * 768 * 3072 / _best(product, repeats) / 1e9


def _best(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
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
