"""`generate` as a method of the Flax models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gptrio.errors import UnsupportedError

if TYPE_CHECKING:
    from gptrio.jax.outputs import FlaxModelOutput


class FlaxGenerationMixin:
    """The methods of a model for generation."""

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the class predicts the next token."""
        return False

    def generate(self, input_ids: Any, *args: Any, **kwargs: Any) -> FlaxModelOutput:
        """Continue sequences; see `gptrio.jax.generation.generate.generate` for every argument and error."""
        if not self.can_generate():
            raise UnsupportedError(
                f"{type(self).__name__} has no language-model head, so it cannot generate; load the checkpoint with "
                "FlaxAutoModelForCausalLM"
            )
        from gptrio.jax.generation.generate import generate

        return generate(self, input_ids, *args, **kwargs)
