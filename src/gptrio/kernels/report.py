"""Which kernels run on this machine, and why: what `gptrio env` shows."""

from __future__ import annotations

import torch

from gptrio.kernels.linear import can_pack_cached
from gptrio.kernels.quantized import int8_products_are_exact

_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def kernel_report() -> dict[str, str]:
    """Say for each kind of weight which calls inference uses."""
    report = {}
    for dtype, name in _NAMES.items():
        packed = can_pack_cached(dtype)
        report[name] = "oneDNN on a packed copy" if packed else "torch, as oneDNN cannot pack this type here"
    plain = "torch on weights taken back to the dtype of x"
    report["int8"] = "torch's int8 product" if int8_products_are_exact() else plain
    report["int4"] = plain
    return report
