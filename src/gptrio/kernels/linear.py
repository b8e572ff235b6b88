"""The one matrix product that every linear layer ends in.

Outside `packed_inference`, and whenever gradients, tracing, compilation, autocast, subclasses or wrapped tensors are in
play, it is torch's own call, and its numbers are torch's, but where torch emulates (`widened`). Inside, it runs through
oneDNN on a packed copy of the weight (see `packing`).
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn import functional as F

from gptrio.kernels import cpu_prefill, differentiable, widened
from gptrio.kernels.cpu_decode.compilation import unready_reason
from gptrio.kernels.packing import comparing_once, drop_stale_packs, find_pack
from gptrio.kernels.widened import can_pack_cached, is_emulated

if TYPE_CHECKING:
    from gptrio.kernels.cpu_prefill.calls import PrefillKernels

Activation = Literal["none", "relu", "gelu_tanh", "gelu_erf"]

MIN_ELEMENTS = 1 << 16  # smaller weights stay in the processor's cache, where torch's call is as good if not emulated
_LEAST_ROWS, _MOST_ROWS, _NARROW = 640, 1408, 1024  # bfloat16 rows and outputs between which oneDNN leaves a core idle
_GELU = {"gelu_tanh": "tanh", "gelu_erf": "none"}  # torch's and oneDNN's names
_fast: ContextVar[bool] = ContextVar("gptrio_packed_inference", default=False)
_may_compile: ContextVar[bool] = ContextVar("gptrio_may_compile", default=True)
_calls = itertools.count()  # of `packed_inference`, for models on the CPU
_may_pack: ContextVar[bool] = ContextVar("gptrio_may_pack", default=True)


@contextmanager
def packed_inference(model: nn.Module, may_compile: bool = True) -> Iterator[None]:
    """Let the linear layers of `model` use this machine's fastest kernels, in this thread, for inference.

    Results differ from the plain path by rounding only (sums run in another order). Parameters may change between
    calls and inside: a changed parameter is packed anew (`packing` says how a change is found). A process forked later
    runs torch with one thread: OpenMP cannot restart its threads there, and would wait for them for ever.

    Args:
        model: whose layers run inside.
        may_compile: use code that was compiled for this processor, where it is loaded.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        yield
        return
    _run_alone_after_fork()
    drop_stale_packs(model)
    weight = next(model.parameters(), None)
    if may_compile and weight is not None and weight.is_cpu and next(_calls) == 1:
        unready_reason()  # a process that comes here twice is worth the half second that loading takes
    tokens = _fast.set(True), _may_compile.set(may_compile)
    try:
        with comparing_once():
            yield
    finally:
        _fast.reset(tokens[0])
        _may_compile.reset(tokens[1])


@contextmanager
def packing_disabled() -> Iterator[None]:
    """Use the packs that are there, and make none: for products that do not come again."""
    token = _may_pack.set(False)
    try:
        yield
    finally:
        _may_pack.reset(token)


def prefill_kernels() -> PrefillKernels | None:
    """The compiled kernels of a prompt: inside `packed_inference` and outside of torch's tracing, once loaded."""
    may_be_used = not is_dynamo_compiling() and _fast.get() and _may_compile.get()
    return cpu_prefill.kernels if may_be_used else None


@functools.cache
def _run_alone_after_fork() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    transposed: bool = False,
    activation: Activation = "none",
) -> Tensor:
    """Compute `activation(x @ W + bias)`.

    Args:
        x: (..., in).
        weight: (out, in), or (in, out) if `transposed` (GPT-2's layout).
        bias: (out,) or None.
        transposed: the weight is stored (in, out).
        activation: applied to the product.

    Returns:
        (..., out).
    """
    may_gain = not is_dynamo_compiling() and _fast.get() and weight.numel() >= MIN_ELEMENTS
    if may_gain and not is_emulated(weight.dtype) and _eligible(x, weight, bias):
        return _inference(x, weight, bias, transposed, activation)
    plain = weight.t() if transposed else weight
    if differentiable.supports(x, weight, bias, transposed):
        out = differentiable.linear(x, weight, bias, transposed)
    elif widened.gains(x, weight, bias, transposed):
        return activate_(widened.linear(x, plain, bias, widened.result_dtype(x)), activation)
    else:
        out = F.linear(x, plain, bias)
    return activate(out, activation)


def _inference(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, activation: Activation) -> Tensor:
    """The product of plain tensors without autograd."""
    rows = x.numel() // x.shape[-1]
    plain = weight.t() if transposed else weight
    torch_is_fast = weight.dtype is torch.float32 and mkl_is_fast()
    if rows and not needs_no_pack(rows, weight.dtype) and can_pack_cached(weight.dtype):
        pack = find_pack(weight, transposed, _may_pack.get())
        if pack is not None or not torch_is_fast:
            return fused_product(x, plain if pack is None else pack, bias, activation)
    return activate_(F.linear(x, plain, bias), activation)


def needs_no_pack(rows: int, dtype: torch.dtype) -> bool:
    """Whether torch multiplies so many rows as fast as oneDNN with a pack: one through MKL reads the weight once."""
    return rows == 1 and dtype is torch.float32 and torch._C.has_mkl


@functools.cache
def mkl_is_fast() -> bool:
    """Whether torch's float32 products are those of MKL on an Intel processor.

    There, many rows take less time than with oneDNN without a pack. On other processors MKL runs at half of its rate.
    """
    try:
        return torch._C.has_mkl and "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _eligible(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether all are plain CPU tensors of one dtype, outside autograd."""
    dtype = weight.dtype
    return (
        type(weight) is nn.Parameter
        and type(x) is Tensor
        and x.dtype is dtype
        and x.is_cpu
        and weight.is_cpu
        and not torch.is_grad_enabled()
        and (bias is None or (type(bias) is nn.Parameter and bias.dtype is dtype and bias.is_contiguous()))
        and dtype.is_floating_point
        and not torch.is_autocast_enabled("cpu")
        and not weight.is_inference()
        and not torch._C._functorch.peek_interpreter_stack()
    )


def fused_product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """`linear` by oneDNN on a weight (out, in) or its pack: one call where it can be; its own relu makes 0 of NaN."""
    rows = x.numel() // x.shape[-1]
    if (
        _LEAST_ROWS < rows < _MOST_ROWS
        and weight.shape[0] < _NARROW
        and x.dtype is torch.bfloat16
        and not weight.is_mkldnn
    ):
        parts = x.reshape(rows, -1).tensor_split(-(-rows // _LEAST_ROWS))
        return torch.cat([fused_product(part, weight, bias, activation) for part in parts]).view(*x.shape[:-1], -1)
    if _compiled_activation(activation, x.dtype, rows * weight.shape[0]) is not None:
        return activate_(fused_product(x, weight, bias), activation)
    fused = "gelu" if activation in _GELU else "none"
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, fused, [], _GELU.get(activation, ""))
    return out.relu_() if activation == "relu" else out


def _compiled_activation(activation: str, dtype: torch.dtype, count: int) -> PrefillKernels | None:
    """The compiled kernels, if they apply this activation to so many values faster than torch does."""
    kernels = None if activation == "none" else prefill_kernels()
    return kernels if kernels is not None and kernels.supports_activation(activation, dtype, count) else None


def activate_(x: Tensor, activation: str) -> Tensor:
    """`activate` in place: a second tensor of that size, new memory for every layer, would cost more than it does."""
    compiled = _compiled_activation(activation, x.dtype, x.numel())
    if compiled is not None:
        return compiled.activate_(x, activation)
    if activation in _GELU:
        return cast(Tensor, torch.ops.aten.gelu_(x, approximate=_GELU[activation]))
    return x.relu_() if activation == "relu" else x


def activate(x: Tensor, activation: str) -> Tensor:
    """Apply an activation by the name that `linear` takes."""
    if activation == "none":
        return x
    return F.relu(x) if activation == "relu" else F.gelu(x, approximate=_GELU[activation])
