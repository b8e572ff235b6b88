"""The heads, written once over any backbone; a family's file only names them."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from gptrio.config.weight_names import WeightNames
from gptrio.jax.nn.blocks import kernels
from gptrio.jax.nn.linear import Dtype, Linear
from gptrio.jax.outputs import FlaxMaskedLMOutput, FlaxModelOutput

Result = FlaxModelOutput | tuple[Any, ...]


class HeadModule(nn.Module):
    """A backbone with a head.

    Attributes:
        config: of the model.
        dtype: of the computation; parameters keep theirs.
        gradient_checkpointing: compute blocks again in the backward pass.
        backbone_class: class of the backbone, which is kept under `base_model_prefix`.
    """

    config: Any
    dtype: Dtype = jnp.float32
    gradient_checkpointing: bool = False

    backbone_class: ClassVar[Any]
    weight_names: ClassVar[WeightNames] = WeightNames()

    def setup(self) -> None:
        """Make the backbone and the head."""
        backbone = self.backbone_class(self.config, self.dtype, self.gradient_checkpointing)
        setattr(self, self.weight_names.base_model_prefix, backbone)
        self.build_head()

    def build_head(self) -> None:
        """Make the layers of the head."""

    @property
    def backbone(self) -> Any:
        """The part below the head."""
        return getattr(self, self.weight_names.base_model_prefix)


class CausalLMModule(HeadModule):
    """Predicts the next token with a linear layer, tied to the token table if the configuration says so."""

    def build_head(self) -> None:
        """Make the linear layer (C, V); a tied one has no parameters."""
        layer = Linear(self.config.vocab_size, use_bias=False, **kernels(self.config, self.dtype))
        setattr(self, self.weight_names.output, layer)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        deterministic: bool = True,
        init_cache: bool | int = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        logits_to_keep: int = 0,
    ) -> Result:
        """Scores (B, T, V) of every next token.

        Args:
            logits_to_keep: compute only the last so many columns; 0 for all.
            input_ids, attention_mask, position_ids, deterministic, init_cache, output_attentions, output_hidden_states,
                return_dict: see `Backbone`.
        """
        out = self.backbone(
            input_ids, attention_mask, position_ids, deterministic, init_cache, output_attentions, output_hidden_states
        )
        logits = self.logits(out.last_hidden_state[:, -logits_to_keep:])
        result = FlaxMaskedLMOutput(logits=logits, hidden_states=out.hidden_states, attentions=out.attentions)
        return result if return_dict else result.to_tuple()

    def logits(self, states: Array) -> Array:
        """Scores (..., V) of the tokens after states (..., C)."""
        if not self.config.tie_word_embeddings:
            return getattr(self, self.weight_names.output)(states)
        states, table = (jnp.asarray(array, self.dtype) for array in (states, self.backbone.token_table))
        return jnp.einsum("...c,vc->...v", states, table)
