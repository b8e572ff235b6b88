"""What generation asks of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from gptrio.cache import Cache
    from gptrio.generation.options.config import GenerationConfig
    from gptrio.kernels.cpu_decode import Reason
    from gptrio.models.base.compiled import CompiledStep


class CausalLM(Protocol):
    """A language model: a module whose forward gives the logits (B, T, V) of the next tokens, and keys and values.

    Attributes:
        config: its configuration.
        generation_config: its own options of `generate`.
        training: whether it is in training mode.
        base_model_prefix: name of the attribute that holds the model without its head.
    """

    config: Any
    generation_config: GenerationConfig
    training: bool
    base_model_prefix: ClassVar[str]

    @property
    def base_model(self) -> Any:
        """The model without its head."""

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its parameters."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """An output with logits and past_key_values."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What a call runs."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights."""

    def buffers(self) -> Iterator[Tensor]:
        """The other tensors."""

    def num_parameters(self, *, exclude_embeddings: bool = False) -> int:
        """Number of weights."""

    def get_input_embeddings(self) -> nn.Module:
        """The token table."""

    def get_output_embeddings(self) -> nn.Module | None:
        """The layer that gives logits."""

    def next_logits(self, input_ids: Tensor, cache: Cache) -> Tensor:
        """Logits (B, 1, V) of the token after `input_ids` (B, T), which have no padding."""

    def compiled_step(self, rows: int, left_padding: Tensor | None = None) -> CompiledStep | Reason:
        """A compiled form of `next_logits` for B = `rows`, or the reason why there is none."""
