"""The calls of the compiled kernels of a prompt: which tensors they are for, and what they are given.

They run in the threads of torch's OpenMP, which are awake between the products before and after them.
"""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import types
from numba.core.ccallback import CFunc
from torch import Tensor

from gptrio.kernels import cpu_prefill, guards
from gptrio.kernels.cpu_decode.compilation import keep_code_in
from gptrio.kernels.cpu_decode.structs import BFLOAT16, FLOAT32, GELU_ERF, GELU_TANH
from gptrio.kernels.cpu_prefill import activation, attention
from gptrio.kernels.cpu_prefill.vectors import supports_bfloat16

MIN_QUERIES, MIN_VALUES = 32, 1 << 16  # with fewer, torch's own operations are as fast
_ITEMS_PER_THREAD = 4  # that parts of heads are made for, as later queries see more keys
_FORMATS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # those without a kernel of their own are computed in float32
_KINDS = {"gelu_tanh": GELU_TANH, "gelu_erf": GELU_ERF}
_NO_WINDOW = 1 << 40
_local = threading.local()  # `workspace`: memory that the last call of this thread needed


class PrefillKernels:
    """The compiled kernels.

    Args:
        folder: where their code is kept.
        may_compile: compile what is not there.

    Raises:
        LookupError: the code is not there, and may not be compiled.
    """

    def __init__(self, folder: Path, may_compile: bool) -> None:
        """Load the code, or compile it."""
        functions = {torch.float32: (attention.attend_floats, activation.activate_floats)}
        if supports_bfloat16():
            functions[torch.bfloat16] = attention.attend_bfloats, activation.activate_bfloats
        self._entries = {
            dtype: tuple(_compiled(function, folder, may_compile) for function in both)
            for dtype, both in functions.items()
        }

    def supports_attention(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        """Whether queries (B, H, T, D), keys and values (B, H, S, D) are plain, of one dtype, and many enough."""
        width = 32 if q.dtype is torch.bfloat16 and q.dtype in self._entries else 16
        return (
            q.shape[2] >= MIN_QUERIES
            and q.dtype in _DTYPES
            and q.shape[-1] % width == 0
            and not torch.is_autocast_enabled("cpu")
            and all(_is_plain(x) and x.dtype is q.dtype and x.stride(-1) == 1 for x in (q, k, v))
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, offset: int, window: int | None) -> Tensor:
        """Causal attention of queries (B, H, T, D) to keys and values (B, H, S, D), which `supports_attention`.

        Args:
            q: queries; query i sees no key after `offset + i`.
            k: keys.
            v: values.
            scale: factor of the scores.
            offset: of the last key that the first query sees.
            window: most keys that a query sees; None for all.

        Returns:
            (B, T, H * D).
        """
        if q.dtype not in self._entries:
            return self.attend(q.float(), k.float(), v.float(), scale, offset, window).to(q.dtype)
        rows, heads, queries, width = q.shape
        format, threads = _FORMATS[q.dtype], torch.get_num_threads()
        out = _empty((rows, queries, heads * width), q.dtype)
        parts = max(min(-(-_ITEMS_PER_THREAD * threads // (rows * heads)), queries // 64), 1)
        task = np.zeros(1, attention.ATTENTION)
        task["items"], task["parts"], task["heads"] = rows * heads * parts, parts, heads
        task["queries"], task["keys"], task["offset"], task["width"] = queries, k.shape[2], offset, width
        task["window"], task["factor"] = window or _NO_WINDOW, scale * math.log2(math.e)
        for name, x in (("q", q), ("k", k), ("v", v), ("out", out.view(rows, queries, heads, width).transpose(1, 2))):
            task[name] = x.data_ptr()
            for part, stride in zip(("row", "head", "step"), x.stride(), strict=False):
                task[f"{name}_{part}"] = x.element_size() * stride
        size = -(-attention.buffers(format, k.shape[2], width, 0)[-1] // 64) * 64
        workspace = _workspace(size * threads)
        task["workspace"], task["workspace_stride"] = -(-workspace.data_ptr() // 64) * 64, size
        _run(self._entries[q.dtype][0], task)
        if guards.are_on():
            guards.check(out, "the result of attention")
            guards.check(workspace, "the workspace of attention")
        return out

    def supports_activation(self, kind: str, dtype: torch.dtype, count: int) -> bool:
        """Whether an activation of so many values of a dtype is known, and faster than torch's."""
        return kind in _KINDS and dtype in self._entries and count >= MIN_VALUES and count % 16 == 0

    def activate_(self, x: Tensor, kind: str) -> Tensor:
        """Apply an activation that is supported to a contiguous tensor, in place."""
        task = np.zeros(1, activation.ACTIVATION)
        task["kind"], task["x"], task["count"] = _KINDS[kind], x.data_ptr(), x.numel()
        _run(self._entries[x.dtype][1], task)
        return x


def prepare(folder: Path, may_compile: bool) -> None:
    """Load the kernels from a folder; or compile them for this processor, and keep their code there.

    Raises:
        LookupError: the code is not there, and may not be compiled.
    """
    if _parallel() is not None and cpu_prefill.kernels is None:
        cpu_prefill.kernels = PrefillKernels(folder, may_compile)


def _compiled(function: Any, folder: Path, may_compile: bool) -> Any:
    entry = CFunc(function, ((types.intp,), types.void), {}, {"nopython": True, "error_model": "numpy"})
    keep_code_in(folder, entry, may_compile)
    entry.compile()
    return entry


def _run(entry: Any, task: Any) -> None:
    _parallel()(entry.address, task.ctypes.data, torch.get_num_threads(), 0)


@functools.cache
def _parallel() -> Any:
    """OpenMP's call of a function by a team of threads, as GCC names it; None where torch has no such OpenMP."""
    try:
        call = ctypes.CDLL(None).GOMP_parallel
    except (OSError, AttributeError, TypeError):
        return None
    call.argtypes, call.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return call


def _is_plain(x: Tensor) -> bool:
    return type(x) is Tensor and x.is_cpu and not x.is_neg() and not x.requires_grad


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return guards.guarded_empty(shape, dtype) if guards.are_on() else torch.empty(shape, dtype=dtype, device="cpu")


def _workspace(size: int) -> Tensor:
    """Memory of this thread for so many bytes from the next multiple of 64 on."""
    held: Tensor | None = getattr(_local, "workspace", None)
    if held is None or held.numel() < size + 64 or guards.are_on():
        held = _local.workspace = _empty((size + 64,), torch.uint8)
    return held
