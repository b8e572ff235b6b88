"""Forms of a weight made for this processor, kept beside the weight and dropped when it changes.

A pack belongs to one tensor object. It is used only while the tensor is what it was when the pack was made: same
version counter, storage, shape and strides, and same content. Writes through `.data`, through numpy and by others that
share the memory move no version counter, so the content is compared as well, all of it, by `fingerprint`: once in each
`packed_inference` (each `generate`), when a pack is first used there, and at every use outside of it. So an edit
between two calls is seen; an edit through `.data` in the middle of `generate` may go unseen until the next call.

That reads each packed weight once more: the 340 MB of the blocks of GPT-2 (124M, float32) take 24 ms on two cores,
where adding them up takes 19 ms (docs/performance.md). A call that uses no pack has no such cost: the compiled step,
one float32 row through MKL, and the prompts before them use none.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from gptrio.kernels.fingerprint import fingerprint
from gptrio.kernels.operators import ONEDNN_LINEAR, has_operators
from gptrio.memory import drop_mapped_pages

_ROWS_HINT = {
    torch.float32: 16,
    torch.bfloat16: 64,
    torch.float16: 64,
}  # row counts whose layout is also used for all others


@dataclass(frozen=True)
class Pack:
    """One packed weight.

    Attributes:
        content: the packed form; opaque to everything but the calls it is made for.
        state: what the weight was when it was packed.
        content_of: fingerprint of the weight, taken before it was packed.
        nbytes: size of the packed copy.
    """

    content: Any
    state: tuple[object, ...]
    content_of: Tensor
    nbytes: int


_packs: dict[int, tuple[weakref.ref[Tensor], Pack]] = {}
_lock = threading.RLock()  # for deletions: callbacks of weak references run in any thread, at any time
_compared: ContextVar[dict[int, Pack] | None] = ContextVar("gptrio_compared_packs", default=None)


@contextmanager
def comparing_once() -> Iterator[None]:
    """Compare the content of a weight with its pack's when the pack is first used in this context, and not again."""
    token = _compared.set({})
    try:
        yield
    finally:
        _compared.reset(token)


def find_pack(weight: Tensor, transposed: bool, may_make: bool = True) -> Tensor | None:
    """The form of a floating-point weight for oneDNN, made now if there is none that still fits.

    Args:
        weight: (out, in), or (in, out) if `transposed`; a plain parameter on the CPU, not an inference tensor.
        transposed: the weight is stored (in, out).
        may_make: make it if there is none; otherwise return None.
    """

    def make() -> tuple[Tensor, int]:
        plain = weight.detach().t() if transposed else weight.detach()
        pack = torch.ops.mkldnn._reorder_linear_weight(plain, _ROWS_HINT[weight.dtype])
        drop_mapped_pages(weight)
        return pack, torch.ops.mkldnn._nbytes(pack)

    found: Tensor | None = find(weight, transposed, make if may_make else None)
    return found


def find(
    weight: Tensor, layout: object, make: Callable[[], tuple[Any, int]] | None, others: tuple[Tensor, ...] = ()
) -> Any:
    """The packed form of a weight, or None if there is none that fits and none may be made.

    Args:
        weight: the tensor that the form belongs to.
        layout: what else the form depends on.
        make: returns the form and its size in bytes; None to make none.
        others: tensors that are part of the form, such as scales.
    """
    key, sources = id(weight), (weight, *others)
    entry = _packs.get(key)
    state = (layout, *map(_state, sources))
    if entry is not None and entry[0]() is weight and entry[1].state == state and _has_content(key, entry[1], sources):
        return entry[1].content
    if make is None:
        return None
    with torch.no_grad():
        content_of = _content(sources)  # before packing, so that an edit meanwhile is seen later
        content, nbytes = make()
        pack = Pack(content, state, content_of, nbytes)
    with _lock:
        _packs[key] = (weakref.ref(weight, functools.partial(_forget, key)), pack)
    _note(key, pack)
    return content


def release_packs(module: nn.Module) -> None:
    """Free the packs of a module's weights."""
    if not _packs:  # as in each step of a training
        return
    for weight in _weights(module):
        with _lock:
            _packs.pop(id(weight), None)


def drop_stale_packs(module: nn.Module) -> None:
    """Free the packs of weights that were written to or replaced, as far as their version counters show it."""
    for weight in _weights(module):
        entry = _packs.get(id(weight))
        if entry is not None and entry[1].state[1] != _state(weight):
            with _lock:
                _packs.pop(id(weight), None)


def packed_bytes(module: nn.Module) -> int:
    """Memory that the packs of a module's weights hold, in bytes."""
    entries = (_packs.get(id(weight)) for weight in _weights(module))
    return sum(entry[1].nbytes for entry in entries if entry is not None)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies packed weights of this dtype on this processor."""
    if not torch._C._has_mkldnn or not has_operators(ONEDNN_LINEAR):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def _weights(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _state(weight: Tensor) -> tuple[object, ...]:
    version = 0 if weight.is_inference() else weight._version
    return version, weight.data_ptr(), weight.dtype, weight.shape, weight.stride()


def _content(sources: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([fingerprint(source) for source in sources])


def _has_content(key: int, pack: Pack, sources: tuple[Tensor, ...]) -> bool:
    """Whether tensors hold what they held when they were packed."""
    compared = _compared.get()
    if compared is not None and compared.get(key) is pack:
        return True
    with torch.no_grad():
        same = torch.equal(pack.content_of, _content(sources))
    drop_mapped_pages(sources[0])
    if same:
        _note(key, pack)
    return same


def _note(key: int, pack: Pack) -> None:
    compared = _compared.get()
    if compared is not None:
        compared[key] = pack


def _forget(key: int, reference: weakref.ref[Tensor]) -> None:
    """Drop the pack of a deleted tensor, unless a new tensor has the same id by now."""
    with _lock:
        entry = _packs.get(key)
        if entry is not None and entry[0] is reference:
            _packs.pop(key, None)
