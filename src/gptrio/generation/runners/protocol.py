"""What runs a step of decoding: the interface that all runners share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Step(NamedTuple):
    """A run of the model over the tokens that its cache lacks.

    Attributes:
        ids: (B, S) all tokens so far.
        new_ids: (B, T) those that the cache lacks.
        start, end: columns of the new tokens; columns without ids count too.
        cache: what came before, or None.
        keep: number of last positions whose logits are returned.
        flags: further arguments of the model's forward.
        is_plain: whether the logits of the last position are all that is asked for.
    """

    ids: Tensor
    new_ids: Tensor
    start: int
    end: int
    cache: Any
    keep: int
    flags: dict[str, Any]
    is_plain: bool


@dataclass
class Logits:
    """The output of a plain step: logits (B, 1, V)."""

    logits: Tensor


class StepRunner(Protocol):
    """One way of running steps, on so many threads besides torch's own."""

    threads: int

    def supports(self, step: Step) -> bool:
        """Whether this can run a step."""

    def run(self, step: Step) -> Any:
        """The model's output, with logits (B, keep, V) of the last positions; the cache grows by the new tokens."""
