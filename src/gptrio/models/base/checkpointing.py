"""Gradient checkpointing: blocks are computed again in the backward pass, so their activations need not be kept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptrio.errors import warn
from gptrio.models.base.embeddings import EmbeddingsMixin


class CheckpointingMixin(EmbeddingsMixin):
    """Switches gradient checkpointing of a model on and off (Chen et al., 2016).

    Attributes:
        supports_gradient_checkpointing: True, for all families.
        gradient_checkpointing: whether it is on. Each block has this flag too and obeys its own, so that only some
            blocks can be checkpointed.
    """

    supports_gradient_checkpointing: ClassVar[bool] = True
    gradient_checkpointing: bool = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether some block is computed again in the backward pass."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, every_n_layers: int | None = None
    ) -> None:
        """Compute blocks again in the backward pass instead of keeping their activations.

        Args:
            gradient_checkpointing_kwargs: arguments of `torch.utils.checkpoint.checkpoint`; `use_reentrant=False` by
                default, which needs no input that requires gradients.
            every_n_layers: has no effect, as in Transformers 4.56: every block is checkpointed.
        """
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        if options.pop("every_n_layers", every_n_layers) not in (None, 1):
            warn(
                "every_n_layers has no effect: every block is checkpointed; set gradient_checkpointing = False on the "
                "blocks that are not to be computed again"
            )
        self._set_gradient_checkpointing(True, functools.partial(checkpoint, **options))
        if options["use_reentrant"]:
            self.enable_input_require_grads()

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self._set_gradient_checkpointing(False)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint
    ) -> None:
        """Set the flag of the model and of every part that has one."""
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                part: Any = module
                part._gradient_checkpointing_func = gradient_checkpointing_func
                part.gradient_checkpointing = enable

    def obey_checkpointing_key(self) -> None:
        """Apply the key `gradient_checkpointing` of an old configuration, and remove the key."""
        if getattr(self.config, "gradient_checkpointing", False):
            self.gradient_checkpointing_enable()
            del self.config.gradient_checkpointing
        self.gradient_checkpointing = (
            self.is_gradient_checkpointing
        )  # of a model with a head, whose backbone has applied the key

    def enable_input_require_grads(self) -> None:
        """Make the embedded tokens require gradients, for adapters and re-entrant checkpointing over frozen weights."""
        self.disable_input_require_grads()
        table = self.get_input_embeddings()
        self._require_grads_hook = table.register_forward_hook(_require_grad)

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        hook = self.__dict__.pop("_require_grads_hook", None)
        if hook is not None:
            hook.remove()


def _require_grad(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
    return output.requires_grad_(True)
