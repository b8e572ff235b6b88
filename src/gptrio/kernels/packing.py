"""Forms of a weight made for this processor, kept beside the weight and dropped when it changes.

A pack belongs to one tensor object. It is used only while the tensor is what it was when the pack was made: same
version counter, storage, shape and strides. Writes through `.data` move no version counter, so a few values of every
packed weight are compared again each time `packed_inference` is entered; a `.data` edit inside the context, or one that
spares all of those values, goes unseen.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from gptrio.checkpoint.pages import release_pages

_SAMPLED = 64  # values of a weight that are compared when the context is entered,
_RUNS, _RUN = 4, 4096  # in so many stretches of so many values
_ROWS_HINT = {torch.float32: 16, torch.bfloat16: 64, torch.float16: 64}  # row counts whose layout serves all others


@dataclass(frozen=True)
class Pack:
    """One packed weight.

    Attributes:
        content: the packed form; opaque to everything but the calls it is made for.
        state: what the weight was when it was packed.
        sample: some of its values.
        nbytes: size of the packed copy.
    """

    content: Any
    state: tuple[object, ...]
    sample: Tensor
    nbytes: int


_packs: dict[int, tuple[weakref.ref[Tensor], Pack]] = {}


def find_pack(weight: Tensor, transposed: bool, may_make: bool = True) -> Tensor | None:
    """The form of a floating-point weight for oneDNN, made now if there is none that still fits.

    Args:
        weight: (out, in), or (in, out) if `transposed`; a plain parameter on the CPU, not an inference tensor.
        transposed: the weight is stored (in, out).
        may_make: make it; None otherwise.
    """

    def make() -> tuple[Tensor, int]:
        plain = weight.detach().t() if transposed else weight.detach()
        pack = torch.ops.mkldnn._reorder_linear_weight(plain, _ROWS_HINT[weight.dtype])
        release_pages(weight)
        return pack, torch.ops.mkldnn._nbytes(pack)

    found: Tensor | None = find(weight, transposed, make if may_make else None)
    return found


def find(weight: Tensor, layout: object, make: Callable[[], tuple[Any, int]] | None) -> Any:
    """The packed form of a weight, by `make` (content and its size in bytes), or None, if there is none that fits."""
    key = id(weight)
    entry = _packs.get(key)
    state = _state(weight, layout)
    if entry is not None and entry[0]() is weight and entry[1].state == state:
        return entry[1].content
    if make is None:
        return None
    with torch.no_grad():
        sample = _sample(weight)
        content, nbytes = make()
        pack = Pack(content, state, sample, nbytes)
    _packs[key] = (weakref.ref(weight, lambda _: _packs.pop(key, None)), pack)
    return content


def release_packs(module: nn.Module) -> None:
    """Free the packs of a module's weights."""
    for weight in _weights(module):
        _packs.pop(id(weight), None)


def drop_stale_packs(module: nn.Module) -> None:
    """Free the packs whose weights have visibly changed, edits through `.data` included."""
    for weight in _weights(module):
        entry = _packs.get(id(weight))
        if entry is not None and not torch.equal(entry[1].sample, _sample(weight)):
            del _packs[id(weight)]


def packed_bytes(module: nn.Module) -> int:
    """Memory that the packs of a module's weights hold, in bytes."""
    entries = (_packs.get(id(weight)) for weight in _weights(module))
    return sum(entry[1].nbytes for entry in entries if entry is not None)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies packed weights of this dtype on this processor."""
    if not torch._C._has_mkldnn:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def _weights(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _state(weight: Tensor, layout: object) -> tuple[object, ...]:
    version = 0 if weight.is_inference() else weight._version
    return version, weight.data_ptr(), weight.dtype, weight.shape, weight.stride(), layout


def _sample(weight: Tensor) -> Tensor:
    """(64,) values spread over a weight, the first and the last included."""
    flat = weight.detach().reshape(-1)
    return flat[_places(flat.numel())]


@functools.cache
def _places(count: int) -> Tensor:
    """Where to look among `count` values: in a few runs, so that few pages of a memory-mapped file are read."""
    run = min(_RUN, count)
    starts = torch.linspace(0, count - run, _RUNS, dtype=torch.float64)
    within = torch.linspace(0, run - 1, _SAMPLED // _RUNS, dtype=torch.float64)
    return (starts.unsqueeze(1) + within).long().flatten()
