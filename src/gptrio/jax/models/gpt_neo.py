"""GPT-Neo (Black et al., 2021): GPT-2's shape with unscaled scores, and a sliding window in every other layer.

Shapes: `B` batch, `T` query length, `S` key length, `H` heads, `D` head width, `C` hidden size.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from gptrio.config import GPTNeoConfig
from gptrio.config.gpt_neo import WEIGHT_NAMES
from gptrio.jax.models.base import heads
from gptrio.jax.models.base.backbone import LearnedPositionBackbone
from gptrio.jax.models.base.pretrained import FlaxCausalLM, FlaxPreTrainedModel
from gptrio.jax.nn.attention import AttentionOptions, split_heads
from gptrio.jax.nn.blocks import MLP, BlockOutput, LayerNorm, MultiHeadAttention, kernels
from gptrio.jax.nn.context import AttentionContext
from gptrio.jax.nn.linear import Dtype, Linear


class FlaxGPTNeoSelfAttention(MultiHeadAttention):
    """Multi-head attention to the whole past ("global") or to the last `window_size` positions ("local")."""

    config: GPTNeoConfig
    layer_id: int
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the projections."""
        linear = partial(Linear, self.config.hidden_size, **kernels(self.config, self.dtype))
        self.q_proj, self.k_proj, self.v_proj = (linear(use_bias=False) for _ in range(3))
        self.out_proj = linear()
        self.resid_dropout = nn.Dropout(self.config.resid_dropout)

    def options(self) -> AttentionOptions:
        """Unscaled scores in float32."""
        window = self.config.layer_windows[self.layer_id]
        return AttentionOptions(1.0, window, self.config.attention_dropout, float32_scores=True)

    def __call__(self, x: Array, context: AttentionContext) -> tuple[Array, Array]:
        """Map (B, T, C) to (B, T, C); the weights (B, H, T, S) follow."""
        width = self.config.hidden_size // self.config.num_heads
        q, k, v = (split_heads(project(x), width) for project in (self.q_proj, self.k_proj, self.v_proj))
        out, weights = self.attend(q, k, v, context)
        return self.resid_dropout(self.out_proj(out), deterministic=context.deterministic), weights


class FlaxGPTNeoAttention(nn.Module):
    """Holds the attention of a layer under the name that checkpoints have for it."""

    config: GPTNeoConfig
    layer_id: int = 0
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the attention."""
        self.attention = FlaxGPTNeoSelfAttention(self.config, self.layer_id, self.dtype)

    def __call__(self, x: Array, context: AttentionContext) -> tuple[Array, Array]:
        """Map (B, T, C) to (B, T, C); the weights (B, H, T, S) follow."""
        return self.attention(x, context)


class FlaxGPTNeoBlock(nn.Module):
    """Attention and an MLP, each after a norm."""

    config: GPTNeoConfig
    layer_id: int = 0
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.ln_1, self.ln_2 = (LayerNorm(config.layer_norm_epsilon, dtype=self.dtype) for _ in range(2))
        self.attn = FlaxGPTNeoAttention(config, self.layer_id, self.dtype)
        linear = partial(Linear, **kernels(config, self.dtype))
        self.mlp = MLP(
            config.hidden_size, config.intermediate_size, config.activation_function, config.resid_dropout, linear
        )

    def __call__(self, x: Array, context: AttentionContext) -> BlockOutput:
        """Map (B, T, C) to (B, T, C); the weights (B, H, T, S) follow."""
        attended, weights = self.attn(self.ln_1(x), context)
        x = x + attended
        return x + self.mlp(self.ln_2(x), context.deterministic), weights


class FlaxGPTNeoModule(LearnedPositionBackbone):
    """The GPT-Neo backbone as a Flax module."""

    block_class: ClassVar[Any] = FlaxGPTNeoBlock

    def embedding_dropout(self) -> float:
        """Probability of dropping an entry of the embeddings in training."""
        return self.config.embed_dropout


class FlaxGPTNeoHeadModule(heads.HeadModule):
    """GPT-Neo with a head, as a Flax module."""

    weight_names = WEIGHT_NAMES
    backbone_class: ClassVar[Any] = FlaxGPTNeoModule


class FlaxGPTNeoForCausalLMModule(heads.CausalLMModule, FlaxGPTNeoHeadModule):
    """GPT-Neo that predicts the next token, as a Flax module."""


class FlaxGPTNeoForSequenceClassificationModule(heads.SequenceClassificationModule, FlaxGPTNeoHeadModule):
    """GPT-Neo that classifies sequences by their last token, as a Flax module."""


class FlaxGPTNeoForTokenClassificationModule(heads.TokenClassificationModule, FlaxGPTNeoHeadModule):
    """GPT-Neo that classifies every token, as a Flax module."""


class FlaxGPTNeoForQuestionAnsweringModule(heads.QuestionAnsweringModule, FlaxGPTNeoHeadModule):
    """GPT-Neo that finds the span of an answer, as a Flax module."""


class FlaxGPTNeoPreTrainedModel(FlaxPreTrainedModel):
    """Base of the GPT-Neo classes."""

    config_class = GPTNeoConfig
    weight_names = WEIGHT_NAMES
    base_model_prefix = WEIGHT_NAMES.base_model_prefix


class FlaxGPTNeoModel(FlaxGPTNeoPreTrainedModel):
    """The GPT-Neo backbone: hidden states without a head."""

    module_class = FlaxGPTNeoModule


class FlaxGPTNeoForCausalLM(FlaxCausalLM, FlaxGPTNeoPreTrainedModel):
    """GPT-Neo that predicts the next token."""

    module_class = FlaxGPTNeoForCausalLMModule


class FlaxGPTNeoForSequenceClassification(FlaxGPTNeoPreTrainedModel):
    """GPT-Neo that classifies sequences by their last token."""

    module_class = FlaxGPTNeoForSequenceClassificationModule


class FlaxGPTNeoForTokenClassification(FlaxGPTNeoPreTrainedModel):
    """GPT-Neo that classifies every token."""

    module_class = FlaxGPTNeoForTokenClassificationModule


class FlaxGPTNeoForQuestionAnswering(FlaxGPTNeoPreTrainedModel):
    """GPT-Neo that finds the span of an answer."""

    module_class = FlaxGPTNeoForQuestionAnsweringModule
