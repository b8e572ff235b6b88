"""Weights laid out for oneDNN, kept beside their parameters and dropped when those change.

A pack belongs to one parameter object. It is used only while the parameter is what it was when the pack was made:
same version counter, storage, shape and strides. Writes through `.data` move no version counter, so a few values of
every packed weight are compared again each time `packed_inference` is entered; a `.data` edit inside the context, or
one that spares all of those values, goes unseen.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SAMPLED = 64  # values of a weight that are compared when the context is entered
_ROWS_HINT = {torch.float32: 16, torch.bfloat16: 64, torch.float16: 64}  # row counts whose layout serves all others


@dataclass(frozen=True)
class Pack:
    """One packed weight.

    Attributes:
        tensor: the weight (out, in) in oneDNN's layout; opaque to everything but oneDNN's calls.
        state: what the parameter was when it was packed.
        sample: some of its values.
        nbytes: size of the packed copy.
    """

    tensor: Tensor
    state: tuple[object, ...]
    sample: Tensor
    nbytes: int


_packs: dict[int, tuple[weakref.ref[Tensor], Pack]] = {}


def find_pack(weight: Tensor, transposed: bool) -> Tensor:
    """The packed form of a weight, made now if there is none that still fits.

    Args:
        weight: (out, in), or (in, out) if `transposed`; a plain parameter on the CPU, not an inference tensor.
        transposed: the weight is stored (in, out).
    """
    entry = _packs.get(id(weight))
    if entry is not None and entry[0]() is weight and entry[1].state == _state(weight, transposed):
        return entry[1].tensor
    pack = _make(weight, transposed)
    key = id(weight)
    _packs[key] = (weakref.ref(weight, lambda _: _packs.pop(key, None)), pack)
    return pack.tensor


def release_packs(module: nn.Module) -> None:
    """Free the packs of a module's parameters."""
    for parameter in module.parameters():
        _packs.pop(id(parameter), None)


def drop_stale_packs(module: nn.Module) -> None:
    """Free the packs whose parameters have visibly changed, edits through `.data` included."""
    for parameter in module.parameters():
        entry = _packs.get(id(parameter))
        if entry is not None and not torch.equal(entry[1].sample, _sample(parameter)):
            del _packs[id(parameter)]


def packed_bytes(module: nn.Module) -> int:
    """Memory that the packs of a module's parameters hold, in bytes."""
    entries = (_packs.get(id(parameter)) for parameter in module.parameters())
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


def _state(weight: Tensor, transposed: bool) -> tuple[object, ...]:
    return weight._version, weight.data_ptr(), weight.dtype, weight.shape, weight.stride(), transposed


def _sample(weight: Tensor) -> Tensor:
    """(at most 64,) values spread over a weight, the last one included."""
    flat = weight.detach().flatten() if weight.is_contiguous() else weight.detach().reshape(-1)
    places = torch.linspace(0, flat.numel() - 1, min(_SAMPLED, flat.numel()), dtype=torch.float64).long()
    return flat[places]


@torch.no_grad()
def _make(weight: Tensor, transposed: bool) -> Pack:
    state = _state(weight, transposed)
    plain = weight.detach().t() if transposed else weight.detach()
    tensor = torch.ops.mkldnn._reorder_linear_weight(plain, _ROWS_HINT[weight.dtype])
    return Pack(tensor, state, _sample(weight), torch.ops.mkldnn._nbytes(tensor))
