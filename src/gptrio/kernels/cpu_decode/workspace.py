"""The workspace of a compiled step: how large each buffer is, said once, and the memory for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptrio.kernels import guards
from gptrio.kernels.cpu_decode.ops import row_dot_floats
from gptrio.kernels.cpu_decode.structs import LANES


class Size(NamedTuple):
    """How large a buffer is.

    Attributes:
        copies: one for each thread, or 1 if the threads share it.
        floats: of each copy.
    """

    copies: int
    floats: int


def sizes(*, threads: int, rows: int, width: int, inner: int, positions: int, workspace_bytes: int) -> dict[str, Size]:
    """How large each buffer of the workspace is, by its name in a MODEL table.

    Args:
        threads: of the team.
        rows: B.
        width: C.
        inner: width of the widest MLP.
        positions: most keys that a query sees.
        workspace_bytes: most bytes that a product needs (`matmul.workspace_for`, `low_rank.workspace_for`).
    """
    return {
        "normed": Size(threads, 2 * rows * width),
        "qkv": Size(1, rows * 3 * width),
        "attended": Size(1, rows * width),
        "hidden": Size(1, rows * inner),
        "scores": Size(threads, row_dot_floats(positions)),
        "workspace": Size(threads, -(-workspace_bytes // 4)),
    }


class Workspace:
    """Memory for the buffers of a step; every copy starts a line of memory of its own, so that threads share none.

    Args:
        buffers: how large each is.
        table: row of a MODEL table that their addresses and strides are written to.
    """

    def __init__(self, buffers: dict[str, Size], table: Any) -> None:
        """Allocate, between guard words if they are on."""
        self._buffers = buffers
        self._guard = guards.GUARD // 4 if guards.are_on() else 0
        self._memory = {name: self._allocate(size) for name, size in buffers.items()}
        for name, memory in self._memory.items():
            table[name] = memory.data_ptr() + 4 * self._guard
            if f"{name}_stride" in table.dtype.names:
                table[f"{name}_stride"] = 4 * self._stride(buffers[name])

    def _stride(self, size: Size) -> int:
        """Floats from copy to copy."""
        return -(-size.floats // LANES) * LANES + self._guard

    def _allocate(self, size: Size) -> Tensor:
        words = self._guard + size.copies * self._stride(size)
        if self._guard:
            return torch.full((words,), guards.WORD, dtype=torch.int32, device="cpu")
        return torch.empty(words, dtype=torch.float32, device="cpu")

    def check(self) -> None:
        """Look at the guard words, before, after and between the copies of every buffer.

        Raises:
            GuardError: one has changed.
        """
        for name, size in self._buffers.items() if self._guard else ():
            before, rest = self._memory[name].split([self._guard, size.copies * self._stride(size)])
            between = rest.view(size.copies, -1)[:, size.floats :]
            for words, first in ((before, -4 * self._guard), (between, 4 * size.floats)):
                found = words.contiguous().view(-1).view(torch.uint8)
                expected = torch.full_like(words, guards.WORD).contiguous().view(-1).view(torch.uint8)
                guards.check_same(found, expected, f"the buffer {name!r}", first)
