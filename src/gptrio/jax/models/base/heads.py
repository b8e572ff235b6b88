"""The heads, written once over any backbone; a family's file only names them."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from gptrio.config.weight_names import WeightNames
from gptrio.errors import InputError
from gptrio.jax.nn.blocks import kernels
from gptrio.jax.nn.linear import Dtype, Linear
from gptrio.jax.outputs import (
    FlaxMaskedLMOutput,
    FlaxModelOutput,
    FlaxQuestionAnsweringModelOutput,
    FlaxSequenceClassifierOutput,
    FlaxTokenClassifierOutput,
)


class HeadModule(nn.Module):
    """A backbone with a head.

    Attributes:
        config: of the model.
        dtype: of the computation; parameters keep theirs.
        gradient_checkpointing: compute blocks again in the backward pass.
        weight_names: the backbone is kept under `base_model_prefix`.
        backbone_class: class of the backbone.
        output_class: class of the result.
    """

    config: Any
    dtype: Dtype = jnp.float32
    gradient_checkpointing: bool = False

    weight_names: ClassVar[WeightNames] = WeightNames()
    backbone_class: ClassVar[Any]
    output_class: ClassVar[type[FlaxModelOutput]]

    def setup(self) -> None:
        """Make the backbone and the head."""
        backbone = self.backbone_class(self.config, self.dtype, self.gradient_checkpointing)
        setattr(self, self.weight_names.base_model_prefix, backbone)
        self.build_head()

    def build_head(self) -> None:
        """Make the layers of the head."""

    def head(self, states: Array, input_ids: Array, deterministic: bool) -> dict[str, Array]:
        """The fields of the result that the head computes from states (B, T, C)."""
        raise TypeError(f"{type(self).__name__} computes nothing; define head()")

    @property
    def backbone(self) -> Any:
        """The part below the head."""
        return getattr(self, self.weight_names.base_model_prefix)

    def linear(self, features: int, use_bias: bool = True) -> Linear:
        """A layer (C, features)."""
        return Linear(features, use_bias=use_bias, **kernels(self.config, self.dtype))

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
        **options: Any,
    ) -> FlaxModelOutput | tuple[Any, ...]:
        """What the head says of tokens.

        Args:
            input_ids, attention_mask, position_ids, deterministic, init_cache, output_attentions, output_hidden_states,
                return_dict: see `Backbone`.
            options: of the head, see its `head`.
        """
        out = self.backbone(
            input_ids, attention_mask, position_ids, deterministic, init_cache, output_attentions, output_hidden_states
        )
        fields = self.head(out.last_hidden_state, input_ids, deterministic, **options)
        result = self.output_class(**fields, hidden_states=out.hidden_states, attentions=out.attentions)
        return result if return_dict else result.to_tuple()


class CausalLMModule(HeadModule):
    """Predicts the next token with a linear layer, tied to the token table if the configuration says so."""

    output_class: ClassVar[type[FlaxModelOutput]] = FlaxMaskedLMOutput

    def build_head(self) -> None:
        """Make the linear layer (C, V); a tied one has no parameters."""
        setattr(self, self.weight_names.output, self.linear(self.config.vocab_size, use_bias=False))

    def head(self, states: Array, input_ids: Array, deterministic: bool, logits_to_keep: int = 0) -> dict[str, Array]:
        """Scores (B, T, V) of every next token, or of those after the last `logits_to_keep` columns only."""
        return {"logits": self.logits(states[:, -logits_to_keep:])}

    def logits(self, states: Array) -> Array:
        """Scores (..., V) of the tokens after states (..., C)."""
        if not self.config.tie_word_embeddings:
            return getattr(self, self.weight_names.output)(states)
        states, table = (jnp.asarray(array, self.dtype) for array in (states, self.backbone.token_table))
        return jnp.einsum("...c,vc->...v", states, table)


class SequenceClassificationModule(HeadModule):
    """Classifies a sequence by the state of its last token that is not padding."""

    output_class: ClassVar[type[FlaxModelOutput]] = FlaxSequenceClassifierOutput

    def build_head(self) -> None:
        """Make the linear layer (C, num_labels)."""
        self.score = self.linear(self.config.num_labels, use_bias=False)

    def head(self, states: Array, input_ids: Array, deterministic: bool) -> dict[str, Array]:
        """Scores (B, num_labels) of every label.

        Raises:
            InputError: several rows without a `pad_token_id`, by which the end of each is found.
        """
        pad, rows = self.config.pad_token_id, states.shape[0]
        if pad is None and rows > 1:
            raise InputError(
                f"a batch of {rows} rows cannot be classified without config.pad_token_id, which shows where each row "
                "ends; set it, or classify one row at a time"
            )
        columns = jnp.arange(states.shape[1])
        last = columns[-1:] if pad is None else (columns * (input_ids != pad)).argmax(-1)
        return {"logits": self.score(states[jnp.arange(rows), last])}


class TokenClassificationModule(HeadModule):
    """Classifies every token."""

    output_class: ClassVar[type[FlaxModelOutput]] = FlaxTokenClassifierOutput

    def build_head(self) -> None:
        """Make dropout and the linear layer (C, num_labels)."""
        rates = (getattr(self.config, name, None) for name in ("classifier_dropout", "hidden_dropout"))
        self.dropout = nn.Dropout(next((rate for rate in rates if rate is not None), 0.1))
        self.classifier = self.linear(self.config.num_labels)

    def head(self, states: Array, input_ids: Array, deterministic: bool) -> dict[str, Array]:
        """Scores (B, T, num_labels) of every label for every token."""
        return {"logits": self.classifier(self.dropout(states, deterministic=deterministic))}


class QuestionAnsweringModule(HeadModule):
    """Finds the first and the last token of an answer."""

    output_class: ClassVar[type[FlaxModelOutput]] = FlaxQuestionAnsweringModelOutput

    def build_head(self) -> None:
        """Make the linear layer (C, 2)."""
        self.qa_outputs = self.linear(2)

    def head(self, states: Array, input_ids: Array, deterministic: bool) -> dict[str, Array]:
        """Scores (B, T) of every token as first and as last of the answer."""
        start, end = jnp.moveaxis(self.qa_outputs(states), -1, 0)
        return {"start_logits": start, "end_logits": end}
