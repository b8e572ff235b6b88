"""Steps compiled for this processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptrio.generation.runners.protocol import Logits, Step
from gptrio.kernels.threads import yielding_to

if TYPE_CHECKING:
    from gptrio.models.base.compiled import CompiledStep


class CpuDecodeRunner:
    """The compiled step of a model (see `gptrio.models.base.compiled`), for one token of every row.

    Attributes:
        threads: that take part.
    """

    def __init__(self, compiled: CompiledStep) -> None:
        self._compiled, self.threads = compiled, compiled.threads

    def __str__(self) -> str:
        return f"compiled for this processor, on {self.threads} thread{'s' if self.threads > 1 else ''}"

    def supports(self, step: Step) -> bool:
        """Whether the compiled step is for these tokens and this cache."""
        return step.is_plain and self._compiled.supports(step.new_ids, step.cache)

    def run(self, step: Step) -> Logits:
        """Logits (B, 1, V)."""
        with yielding_to(self.threads):
            return Logits(self._compiled(step.new_ids, step.cache))
