"""GPT-NeoX (Black et al., 2022, "GPT-NeoX-20B"), and Pythia (Biderman et al., 2023).

Shapes: `B` batch, `T` query length, `S` key length, `H` heads, `D` head width, `C` hidden size.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from gptrio.config import GPTNeoXConfig
from gptrio.config.gpt_neox import WEIGHT_NAMES
from gptrio.config.rotary import RotarySettings
from gptrio.jax.models.base import heads
from gptrio.jax.models.base.backbone import Backbone, Blocks
from gptrio.jax.models.base.pretrained import FlaxCausalLM, FlaxPreTrainedModel
from gptrio.jax.nn.activations import activation
from gptrio.jax.nn.attention import AttentionOptions
from gptrio.jax.nn.blocks import BlockOutput, LayerNorm, MultiHeadAttention, kernels, normal
from gptrio.jax.nn.context import AttentionContext
from gptrio.jax.nn.linear import Dtype, Embedding, Linear
from gptrio.jax.nn.rotary import RotaryTables, rotary_tables, rotate


class FlaxGPTNeoXAttention(MultiHeadAttention):
    """Multi-head attention to the past, with rotary positions."""

    config: GPTNeoXConfig
    layer_id: int
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the projections."""
        config = self.config
        linear = partial(Linear, use_bias=config.attention_bias, **kernels(config, self.dtype))
        self.query_key_value = linear(features=3 * config.hidden_size)
        self.dense = linear(features=config.hidden_size)

    def options(self) -> AttentionOptions:
        """Scores divided by the root of the head's width."""
        width = self.config.hidden_size // self.config.num_attention_heads
        return AttentionOptions(width**-0.5, None, self.config.attention_dropout)

    def __call__(self, x: Array, context: AttentionContext) -> tuple[Array, Array]:
        """Map (B, T, C) to (B, T, C); the weights (B, H, T, S) follow."""
        heads = self.config.num_attention_heads
        qkv = self.query_key_value(x).reshape(*x.shape[:2], heads, 3, -1)  # each head has its own q, k, v
        q, k, v = (qkv[:, :, :, i].swapaxes(1, 2) for i in range(3))  # (B, H, T, D)
        assert context.rotary is not None
        out, weights = self.attend(rotate(q, context.rotary), rotate(k, context.rotary), v, context)
        return self.dense(out), weights


class FlaxGPTNeoXMLP(nn.Module):
    """Two linear layers around an activation."""

    config: GPTNeoXConfig
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the layers."""
        linear = partial(Linear, **kernels(self.config, self.dtype))
        self.dense_h_to_4h = linear(features=self.config.intermediate_size)
        self.dense_4h_to_h = linear(features=self.config.hidden_size)

    def __call__(self, x: Array) -> Array:
        """Map (B, T, C) to (B, T, C)."""
        return self.dense_4h_to_h(activation(self.config.hidden_act)(self.dense_h_to_4h(x)))


class FlaxGPTNeoXLayer(nn.Module):
    """Pre-norm block, with attention and MLP side by side or one after the other."""

    config: GPTNeoXConfig
    layer_id: int = 0
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        norm = partial(LayerNorm, config.layer_norm_eps, dtype=self.dtype)
        self.input_layernorm, self.post_attention_layernorm = norm(), norm()
        self.attention = FlaxGPTNeoXAttention(config, self.layer_id, self.dtype)
        self.mlp = FlaxGPTNeoXMLP(config, self.dtype)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def __call__(self, x: Array, context: AttentionContext) -> BlockOutput:
        """Map (B, T, C) to (B, T, C); the weights (B, H, T, S) follow."""
        attended, weights = self.attention(self.input_layernorm(x), context)
        attended = self.dropout(attended, deterministic=context.deterministic)
        if self.config.use_parallel_residual:
            return self._mlp(x, context) + attended + x, weights
        x = x + attended
        return x + self._mlp(x, context), weights

    def _mlp(self, x: Array, context: AttentionContext) -> Array:
        return self.dropout(self.mlp(self.post_attention_layernorm(x)), deterministic=context.deterministic)


class FlaxGPTNeoXModule(Backbone):
    """The GPT-NeoX backbone as a Flax module."""

    def setup(self) -> None:
        """Make the table, the blocks and the norm."""
        config = self.config
        table = {"embedding_init": normal(config.initializer_range), "dtype": self.dtype}
        self.embed_in = Embedding(config.vocab_size, config.hidden_size, **table)
        self.emb_dropout = nn.Dropout(config.hidden_dropout)
        self.layers = Blocks(FlaxGPTNeoXLayer, config, self.dtype, self.gradient_checkpointing)
        self.final_layer_norm = LayerNorm(config.layer_norm_eps, dtype=self.dtype)

    def embed(self, input_ids: Array, position_ids: Array, deterministic: bool) -> Array:
        """Token vectors; positions are rotations."""
        return self.emb_dropout(self.embed_in(input_ids), deterministic=deterministic)

    def rotary_tables(self, position_ids: Array) -> RotaryTables:
        """Cosines and sines, each (B, 1, T, R / 2)."""
        return rotary_tables(RotarySettings.of(self.config), position_ids, self.dtype)

    @property
    def blocks(self) -> Any:
        """The `Blocks`."""
        return self.layers

    @property
    def final_norm(self) -> Any:
        """The norm after the last block."""
        return self.final_layer_norm

    @property
    def token_table(self) -> Array:
        """(V, C) vectors of the tokens."""
        return self.embed_in.embedding


class FlaxGPTNeoXHeadModule(heads.HeadModule):
    """GPT-NeoX with a head, as a Flax module."""

    weight_names = WEIGHT_NAMES
    backbone_class: ClassVar[Any] = FlaxGPTNeoXModule


class FlaxGPTNeoXForCausalLMModule(heads.CausalLMModule, FlaxGPTNeoXHeadModule):
    """GPT-NeoX that predicts the next token, as a Flax module."""


class FlaxGPTNeoXForSequenceClassificationModule(heads.SequenceClassificationModule, FlaxGPTNeoXHeadModule):
    """GPT-NeoX that classifies sequences by their last token, as a Flax module."""


class FlaxGPTNeoXForTokenClassificationModule(heads.TokenClassificationModule, FlaxGPTNeoXHeadModule):
    """GPT-NeoX that classifies every token, as a Flax module."""


class FlaxGPTNeoXForQuestionAnsweringModule(heads.QuestionAnsweringModule, FlaxGPTNeoXHeadModule):
    """GPT-NeoX that finds the span of an answer, as a Flax module."""


class FlaxGPTNeoXPreTrainedModel(FlaxPreTrainedModel):
    """Base of the GPT-NeoX classes."""

    config_class = GPTNeoXConfig
    weight_names = WEIGHT_NAMES
    base_model_prefix = WEIGHT_NAMES.base_model_prefix


class FlaxGPTNeoXModel(FlaxGPTNeoXPreTrainedModel):
    """The GPT-NeoX backbone: hidden states without a head."""

    module_class = FlaxGPTNeoXModule


class FlaxGPTNeoXForCausalLM(FlaxCausalLM, FlaxGPTNeoXPreTrainedModel):
    """GPT-NeoX that predicts the next token."""

    module_class = FlaxGPTNeoXForCausalLMModule


class FlaxGPTNeoXForSequenceClassification(FlaxGPTNeoXPreTrainedModel):
    """GPT-NeoX that classifies sequences by their last token."""

    module_class = FlaxGPTNeoXForSequenceClassificationModule


class FlaxGPTNeoXForTokenClassification(FlaxGPTNeoXPreTrainedModel):
    """GPT-NeoX that classifies every token."""

    module_class = FlaxGPTNeoXForTokenClassificationModule


class FlaxGPTNeoXForQuestionAnswering(FlaxGPTNeoXPreTrainedModel):
    """GPT-NeoX that finds the span of an answer."""

    module_class = FlaxGPTNeoXForQuestionAnsweringModule
