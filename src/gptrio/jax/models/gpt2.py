"""GPT-2 (Radford et al., 2019, "Language Models are Unsupervised Multitask Learners").

Shapes: `B` batch, `T` query length, `S` key length, `H` heads, `D` head width, `C` hidden size.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from gptrio.config import GPT2Config, PretrainedConfig
from gptrio.config.gpt2 import WEIGHT_NAMES
from gptrio.errors import UnsupportedError
from gptrio.jax.models.base import heads
from gptrio.jax.models.base.backbone import LearnedPositionBackbone
from gptrio.jax.models.base.pretrained import FlaxCausalLM, FlaxPreTrainedModel
from gptrio.jax.nn.attention import AttentionOptions, split_heads
from gptrio.jax.nn.blocks import MLP, BlockOutput, LayerNorm, MultiHeadAttention, kernels
from gptrio.jax.nn.context import AttentionContext
from gptrio.jax.nn.linear import Conv1D, Dtype
from gptrio.jax.outputs import FlaxBaseModelOutputWithPastAndCrossAttentions, FlaxCausalLMOutputWithCrossAttentions


class FlaxGPT2Attention(MultiHeadAttention):
    """Multi-head attention to the past."""

    config: GPT2Config
    layer_id: int
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the projections."""
        linear = partial(Conv1D, **kernels(self.config, self.dtype))
        self.c_attn = linear(features=3 * self.config.n_embd)
        self.c_proj = linear(features=self.config.n_embd)
        self.resid_dropout = nn.Dropout(self.config.resid_pdrop)

    def options(self) -> AttentionOptions:
        """Scores divided by the root of the head's width, and by the layer's number, as the configuration says."""
        config = self.config
        scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
        scale /= self.layer_id + 1 if config.scale_attn_by_inverse_layer_idx else 1
        return AttentionOptions(scale, None, config.attn_pdrop, config.reorder_and_upcast_attn)

    def __call__(self, x: Array, context: AttentionContext) -> tuple[Array, Array]:
        """Map (B, T, C) to (B, T, C); the weights (B, H, T, S) follow."""
        width = self.config.n_embd // self.config.n_head
        q, k, v = (split_heads(part, width) for part in jnp.split(self.c_attn(x), 3, axis=-1))
        out, weights = self.attend(q, k, v, context)
        return self.resid_dropout(self.c_proj(out), deterministic=context.deterministic), weights


class FlaxGPT2Block(nn.Module):
    """Attention and an MLP, each after a norm."""

    config: GPT2Config
    layer_id: int = 0
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.ln_1, self.ln_2 = (LayerNorm(config.layer_norm_epsilon, dtype=self.dtype) for _ in range(2))
        self.attn = FlaxGPT2Attention(config, self.layer_id, self.dtype)
        linear = partial(Conv1D, **kernels(config, self.dtype))
        self.mlp = MLP(config.n_embd, config.n_inner, config.activation_function, config.resid_pdrop, linear)

    def __call__(self, x: Array, context: AttentionContext) -> BlockOutput:
        """Map (B, T, C) to (B, T, C); the weights (B, H, T, S) follow."""
        attended, weights = self.attn(self.ln_1(x), context)
        x = x + attended
        return x + self.mlp(self.ln_2(x), context.deterministic), weights


class FlaxGPT2Module(LearnedPositionBackbone):
    """The GPT-2 backbone as a Flax module."""

    block_class: ClassVar[Any] = FlaxGPT2Block
    output_class: ClassVar[Any] = FlaxBaseModelOutputWithPastAndCrossAttentions
    converts_tables: ClassVar[bool] = True

    def embedding_dropout(self) -> float:
        """Probability of dropping an entry of the embeddings in training."""
        return self.config.embd_pdrop


class FlaxGPT2HeadModule(heads.HeadModule):
    """GPT-2 with a head, as a Flax module."""

    weight_names = WEIGHT_NAMES
    backbone_class: ClassVar[Any] = FlaxGPT2Module


class FlaxGPT2LMHeadModule(heads.CausalLMModule, FlaxGPT2HeadModule):
    """GPT-2 that predicts the next token, as a Flax module."""

    output_class: ClassVar[Any] = FlaxCausalLMOutputWithCrossAttentions


class FlaxGPT2ForSequenceClassificationModule(heads.SequenceClassificationModule, FlaxGPT2HeadModule):
    """GPT-2 that classifies sequences by their last token, as a Flax module."""


class FlaxGPT2ForTokenClassificationModule(heads.TokenClassificationModule, FlaxGPT2HeadModule):
    """GPT-2 that classifies every token, as a Flax module."""


class FlaxGPT2ForQuestionAnsweringModule(heads.QuestionAnsweringModule, FlaxGPT2HeadModule):
    """GPT-2 that finds the span of an answer, as a Flax module."""


class FlaxGPT2PreTrainedModel(FlaxPreTrainedModel):
    """Base of the GPT-2 classes."""

    config_class = GPT2Config
    weight_names = WEIGHT_NAMES
    base_model_prefix = WEIGHT_NAMES.base_model_prefix

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        """Refuse a decoder that attends to an encoder; the rest as for `FlaxPreTrainedModel`."""
        if getattr(config, "add_cross_attention", False):
            raise UnsupportedError(
                f"{type(self).__name__} has no cross-attention (add_cross_attention=True); use the PyTorch class"
            )
        super().__init__(config, *args, **kwargs)


class FlaxGPT2Model(FlaxGPT2PreTrainedModel):
    """The GPT-2 backbone: hidden states without a head."""

    module_class = FlaxGPT2Module


class FlaxGPT2LMHeadModel(FlaxCausalLM, FlaxGPT2PreTrainedModel):
    """GPT-2 that predicts the next token."""

    module_class = FlaxGPT2LMHeadModule


class FlaxGPT2ForSequenceClassification(FlaxGPT2PreTrainedModel):
    """GPT-2 that classifies sequences by their last token."""

    module_class = FlaxGPT2ForSequenceClassificationModule


class FlaxGPT2ForTokenClassification(FlaxGPT2PreTrainedModel):
    """GPT-2 that classifies every token."""

    module_class = FlaxGPT2ForTokenClassificationModule


class FlaxGPT2ForQuestionAnswering(FlaxGPT2PreTrainedModel):
    """GPT-2 that finds the span of an answer."""

    module_class = FlaxGPT2ForQuestionAnsweringModule
