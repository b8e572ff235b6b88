"""Which kernels run on this machine, and why: what `gptrio env` shows."""

from __future__ import annotations

import torch

from gptrio.kernels.linear import can_pack_cached, native_rows
from gptrio.kernels.native.library import native
from gptrio.kernels.quantized import int8_products_are_exact

_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def kernel_report() -> dict[str, str]:
    """Say for each kind of weight which calls inference uses; compiles the C kernels if that has not happened yet."""
    state = native()
    report = {
        "processor": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "C kernels": f"{'used' if state.library is not None else 'not used'}: {state.reason}",
    }
    for dtype, name in _NAMES.items():
        report[name] = _products(native_rows(dtype), can_pack_cached(dtype))
    plain = "torch on weights taken back to the dtype of x"
    compiled = state.library is not None
    exact = compiled and int8_products_are_exact()
    report["int8"] = _quantized(compiled, "torch's int8 product" if exact else plain)
    report["int4"] = _quantized(compiled, plain)
    return report


def _products(few: int, packed: bool) -> str:
    many = "oneDNN on a packed copy" if packed else "torch, as oneDNN cannot pack this type here"
    return f"C kernels up to {few} rows, then {many}" if few else many


def _quantized(compiled: bool, many: str) -> str:
    return f"C kernels for few rows, then {many}" if compiled else many
