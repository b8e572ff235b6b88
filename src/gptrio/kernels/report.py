"""Which kernels run on this machine, and why: what `gptrio env` shows."""

from __future__ import annotations

import torch

from gptrio.kernels.cpu_decode import MAX_ROWS, MAX_ROWS_AMX, NOT_INSTALLED, check_numba, is_installed, one_line
from gptrio.kernels.cpu_decode.compilation import status
from gptrio.kernels.linear import needs_no_pack
from gptrio.kernels.operators import has_int8_products
from gptrio.kernels.quantized import has_bfloat16_tiles, one_row_range
from gptrio.kernels.widened import can_pack_cached

_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_EMULATED = "in float32 on weights widened part by part, as oneDNN has no products of this type here"
_UNPACKED = {
    torch.float32: "torch, as oneDNN cannot pack this type here",
    torch.bfloat16: _EMULATED,
    torch.float16: _EMULATED,
}
_PLAIN = "torch on weights dequantized to the dtype of x, or to float32 where that is emulated"


def kernel_report() -> dict[str, str]:
    """For each kind of weight, the calls that inference uses."""
    report = {}
    for dtype, name in _NAMES.items():
        report[name] = "oneDNN on a packed copy" if can_pack_cached(dtype) else _UNPACKED[dtype]
    if needs_no_pack(1, torch.float32):
        report["float32"] = f"one row: MKL on the weight itself; more rows: {report['float32']}"
    one_row = f"one row: fbgemm with {one_row_range()}-bit activations" if one_row_range() else ""
    tiles = "; many: bfloat16 tiles on dequantized weights" if has_bfloat16_tiles() else ""
    more_rows = "torch's int8 product" if has_int8_products() else f"{_PLAIN}, as the processor has no VNNI"
    report["int8"] = (f"{one_row}; more rows: {more_rows}" if one_row else more_rows) + tiles
    report["int4"] = f"few rows: torch's int4 call in bfloat16; more rows: {_PLAIN}" + tiles
    return report


def decoding_report() -> str:
    """How tokens are decoded."""
    if not is_installed():
        return f"the products above, as {NOT_INSTALLED}"
    try:
        check_numba()
        from gptrio.kernels.cpu_decode.amx import is_available
    except Exception as error:  # whatever the installed numba raises
        return f"the products above: {one_line(error)}"
    tiles = f", up to {MAX_ROWS_AMX} of bfloat16 and int8 weights by AMX" if is_available() else ""
    return f"a step compiled by numba for up to {MAX_ROWS} rows{tiles}; the products above for more; code: {status()}"
