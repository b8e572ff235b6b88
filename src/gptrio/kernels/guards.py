"""Guard words around memory that compiled code writes to, for tests and for finding faults.

With `GPTRIO_GUARDS=1` in the environment, every buffer that compiled code writes to lies between guard words, and so do
the keys and values of a cache. All of a new buffer is filled with the same word, which is NaN as float32, bfloat16
and float16: a read outside of what was written spoils the result, and a write outside changes a guard word.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from gptrio.errors import GuardError

WORD = 0x7FA57FA5  # NaN in every type that a buffer holds
GUARD = 256  # bytes of guard words before and after a buffer
_PER_WORD = 4  # bytes


def are_on() -> bool:
    """Whether the environment asks for guard words: `GPTRIO_GUARDS` is set, and not 0."""
    return os.environ.get("GPTRIO_GUARDS", "0") not in ("", "0")


def guarded_empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU between guard words, filled with guard words itself."""
    size = math.prod(shape) * dtype.itemsize
    words = 2 * GUARD // _PER_WORD + -(-size // _PER_WORD)
    whole = torch.full((words,), WORD, dtype=torch.int32, device="cpu").view(torch.uint8)
    return whole[GUARD : GUARD + size].view(dtype).view(*shape)


def is_guarded(tensor: Tensor) -> bool:
    """Whether a tensor was made by `guarded_empty`, and is not a part of one."""
    size = tensor.numel() * tensor.element_size()
    whole = 2 * GUARD + -(-size // _PER_WORD) * _PER_WORD
    at_start = tensor.storage_offset() * tensor.element_size() == GUARD
    return at_start and tensor.untyped_storage().nbytes() == whole and tensor.is_contiguous()


def check(tensor: Tensor, name: str) -> None:
    """Look at the guard words around a tensor that `guarded_empty` made.

    Raises:
        GuardError: one of them has changed; the message has `name`, and where.
    """
    storage = tensor.untyped_storage()
    whole = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
    expected = torch.full((storage.nbytes() // _PER_WORD,), WORD, dtype=torch.int32, device="cpu").view(torch.uint8)
    end = GUARD + tensor.numel() * tensor.element_size()
    check_same(whole[:GUARD], expected[:GUARD], name, -GUARD)
    check_same(whole[end:], expected[end:], name, end - GUARD)


def check_same(found: Tensor, expected: Tensor, name: str, first: int = 0) -> None:
    """Compare bytes that must not have changed.

    Args:
        found: (N,) uint8, as they are.
        expected: (N,) uint8, as they were.
        name: of the buffer.
        first: offset of the first of them from the buffer's beginning, for the message.

    Raises:
        GuardError: they differ.
    """
    if not torch.equal(found, expected):
        offset = int((found != expected).nonzero()[0]) + first
        raise GuardError(
            f"compiled code wrote outside its part of {name}, at byte {offset} from its start; this is "
            "a fault of gptrio: report it with the model and the call, and pass disable_compile=True until it is fixed"
        )
