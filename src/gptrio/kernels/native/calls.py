"""The C kernels as calls on tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from gptrio.kernels.native.library import native

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ACTIVATIONS = {"none": 0, "relu": 1, "gelu_tanh": 2, "gelu_erf": 3}


def native_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, activation: str, residual: Tensor | None
) -> Tensor:
    """Run a product of few rows; `x` (..., in), `weight` (out, in) or (in, out), all contiguous and of one dtype."""
    library = native().library
    assert library is not None
    inner, width = x.shape[-1], weight.shape[1 if transposed else 0]
    x = x.contiguous()
    out = x.new_empty((*x.shape[:-1], width))
    scratch = None if x.dtype is torch.float32 else torch.empty(x.numel())
    library.gptrio_linear(
        _DTYPES[x.dtype],
        transposed,
        x.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        None if residual is None else residual.data_ptr(),
        out.data_ptr(),
        None if scratch is None else scratch.data_ptr(),
        x.numel() // inner,
        width,
        inner,
        _ACTIVATIONS[activation],
        torch.get_num_threads(),
    )
    return out
