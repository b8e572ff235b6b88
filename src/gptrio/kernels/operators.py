"""Which of torch's private operators exist in the installed version, and which are fast on this processor."""

from __future__ import annotations

import functools

import torch

INT4_ROWS = ("_weight_int4pack_mm_for_cpu", "_convert_weight_to_int4pack_for_cpu")  # since torch 2.6
ONEDNN_LINEAR = ("ops.mkldnn._reorder_linear_weight", "ops.mkldnn._nbytes", "ops.mkldnn._linear_pointwise")


def has_operators(names: tuple[str, ...]) -> bool:
    """Whether torch has all of some operators.

    Args:
        names: dotted, as they follow "torch.".
    """
    return all(_has(name) for name in names)


@functools.cache
def has_int8_products() -> bool:
    """Whether torch multiplies int8 matrices by the processor's instructions for sums of four products (VNNI).

    Without them oneDNN multiplies number by number, thirty times slower than floats are multiplied, or in pairs whose
    sums saturate.
    """
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return supported is not None and bool(supported()) and has_operators(("_int_mm",))


def _has(name: str) -> bool:
    found: object = torch
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None
