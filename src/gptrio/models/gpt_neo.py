"""GPT-Neo (Black et al., 2021): GPT-2's shape with unscaled scores, and a sliding window in every other layer.

Shapes: `B` batch, `T` query length, `H` heads, `D` head width, `C` hidden size, `V` vocabulary.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from gptrio.config import GPTNeoConfig
from gptrio.config.gpt_neo import WEIGHT_NAMES
from gptrio.models.base import heads
from gptrio.models.base.backbone import LearnedPositionBackbone
from gptrio.models.base.part_arguments import takes_reference_arguments
from gptrio.models.base.pretrained import PreTrainedModel
from gptrio.models.base.pruning import head_features
from gptrio.models.base.signatures import positional_order
from gptrio.nn.attention import split_heads
from gptrio.nn.attention_interface import Function, eager_attention_forward
from gptrio.nn.blocks import DROPOUTS, MLP, BlockOutput, MultiHeadAttention, PreNormBlock, causal_bias
from gptrio.nn.context import AttentionContext, with_weights_for_hooks
from gptrio.nn.fast_call import Dropout, Embedding, FastCallModule, LayerNorm, is_written_in
from gptrio.nn.linear import Linear, keep_inputs, keep_outputs
from gptrio.nn.replaced_parts import call_part


@takes_reference_arguments("attention_mask layer_past head_mask use_cache output_attentions cache_position")
class GPTNeoSelfAttention(MultiHeadAttention):
    """Multi-head attention to the whole past ("global") or to the last `window_size` positions ("local")."""

    def __init__(self, config: GPTNeoConfig, layer_idx: int) -> None:
        width = config.hidden_size
        super().__init__(
            width,
            config.num_heads,
            layer_idx,
            scale=1.0,
            dropout=config.attention_dropout,
            window=config.layer_windows[layer_idx],
            float32_scores=True,
        )
        self.config = config
        self.k_proj = Linear(width, width, bias=False)
        self.v_proj = Linear(width, width, bias=False)
        self.q_proj = Linear(width, width, bias=False)
        self.out_proj = Linear(width, width)
        self.resid_dropout = Dropout(config.resid_dropout)

    def forward(self, x: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor | None]:
        """Map (B, T, C) to (B, T, C), and return the weights (B, H, T, S) if they are needed."""
        q, k, v = (split_heads(project(x), self.head_dim) for project in (self.q_proj, self.k_proj, self.v_proj))
        out, weights = context.attend(q, k, v, self.layer_idx, self.options())
        return self.resid_dropout(self.out_proj(out)), weights

    def own_function(self, implementation: str) -> Function | None:
        """What a user has put in place of `_attn`, which Transformers' layer calls by default."""
        return None if is_written_in(self._attn, "gptrio.") else self._by_attn

    def _attn(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, head_mask: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The result (B, H, T, D) for queries (B, H, T, D), and the weights; may be replaced."""
        rate, queries, keys = self.dropout_rate, query.shape[2], key.shape[2]
        if attention_mask is None:
            attention_mask = self.bias[:, :, keys - queries : keys, :keys]
        out, weights = eager_attention_forward(self, query, key, value, attention_mask, None, rate, head_mask)
        return out.transpose(1, 2), weights

    def _by_attn(
        self, _: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, head_mask: Any = None, **others: Any
    ) -> tuple[Tensor, Tensor | None]:
        out, weights = self._attn(q, k, v, mask, head_mask)
        return out.transpose(1, 2), weights

    def _split_heads(self, tensor: Tensor, num_heads: int, attn_head_size: int) -> Tensor:
        """(B, T, H * D) to (B, H, T, D), for subclasses written as Transformers' layer is."""
        return split_heads(tensor, attn_head_size)

    def _merge_heads(self, tensor: Tensor, num_heads: int, attn_head_size: int) -> Tensor:
        """(B, H, T, D) to (B, T, H * D)."""
        return tensor.transpose(1, 2).flatten(2)

    # attributes of Transformers' layer
    bias = property(causal_bias, doc="(1, 1, N, N) table of the causal mask, made when it is read.")
    masked_bias = property(lambda self: torch.tensor(-1e9), doc="Score of a key that no query sees.")
    embed_dim = property(attrgetter("config.hidden_size"), doc="C of the input.")

    @property
    def layer_id(self) -> int:
        """Index of the layer in the cache; may be set."""
        return self.layer_idx

    @layer_id.setter
    def layer_id(self, value: int) -> None:
        self.layer_idx = value

    @property
    def projections(self) -> tuple[nn.Module, ...]:
        """The layers that compute queries, keys and values."""
        return self.q_proj, self.k_proj, self.v_proj

    @property
    def output(self) -> nn.Module:
        """The linear layer after the heads."""
        return self.out_proj

    def keep_heads(self, kept: list[int]) -> None:
        """Remove all heads but those with the indices `kept`."""
        features = head_features(kept, self.head_dim)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            keep_outputs(projection, features)
        keep_inputs(self.out_proj, features)


@takes_reference_arguments("layer_past attention_mask head_mask use_cache output_attentions cache_position")
class GPTNeoAttention(FastCallModule):
    """Holds the attention of a layer under the name that checkpoints have for it."""

    def __init__(self, config: GPTNeoConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_id, self.attention_layers = layer_idx, config.attention_layers
        self.attention_type = config.attention_layers[layer_idx]
        self.attention = GPTNeoSelfAttention(config, layer_idx)

    def forward(self, x: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor | None]:
        """Map (B, T, C) to (B, T, C), and return the weights (B, H, T, S) if they are needed."""
        return cast("tuple[Tensor, Tensor | None]", call_part(self.attention, x, with_weights_for_hooks(self, context)))


class GPTNeoMLP(MLP):
    """Two linear layers around an activation."""

    def __init__(self, intermediate_size: int | None, config: GPTNeoConfig) -> None:
        width, act = config.hidden_size, config.activation_function
        super().__init__(width, intermediate_size, act, config.resid_dropout, Linear)


@takes_reference_arguments("layer_past attention_mask head_mask use_cache output_attentions cache_position")
class GPTNeoBlock(PreNormBlock):
    """Attention and an MLP, each after a norm."""

    compiled_modules: ClassVar = {
        "attn": (GPTNeoAttention,),
        "attn.attention": (GPTNeoSelfAttention,),
        "attn.attention.attn_dropout": DROPOUTS,
        "attn.attention.resid_dropout": DROPOUTS,
        "mlp": (GPTNeoMLP,),
        "mlp.dropout": DROPOUTS,
    }

    def __init__(self, config: GPTNeoConfig, layer_idx: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_epsilon
        self.ln_1 = LayerNorm(width, eps)
        self.attn = GPTNeoAttention(config, layer_idx)
        self.ln_2 = LayerNorm(width, eps)
        self.mlp = GPTNeoMLP(config.intermediate_size, config)

    def forward(self, x: Tensor, context: AttentionContext) -> BlockOutput:
        """Map (B, T, C) to (B, T, C) at the selected positions; the weights, or None, follow."""
        attended, weights = call_part(self.attn, self.ln_1(x), with_weights_for_hooks(self, context))
        x = context.select(x)
        x = x + attended
        x = x + self.mlp(self.ln_2(x))
        return x, weights

    @property
    def self_attention(self) -> GPTNeoSelfAttention:
        """The attention whose heads can be pruned."""
        return cast(GPTNeoAttention, self.attn).attention


class GPTNeoPreTrainedModel(PreTrainedModel):
    """Base of the GPT-Neo classes."""

    config_class = GPTNeoConfig
    base_model_prefix = WEIGHT_NAMES.base_model_prefix
    _no_split_modules: ClassVar[list[str]] = ["GPTNeoBlock"]
    computed_buffers = WEIGHT_NAMES.computed_buffers


@positional_order(
    "input_ids past_key_values attention_mask token_type_ids position_ids head_mask inputs_embeds use_cache "
    "output_attentions output_hidden_states return_dict cache_position"
)
class GPTNeoModel(LearnedPositionBackbone, GPTNeoPreTrainedModel):
    """The GPT-Neo backbone: hidden states without a head."""

    packs_by_position = False

    def __init__(self, config: GPTNeoConfig) -> None:
        super().__init__(config)
        config = self.config
        self.wte = Embedding(config.vocab_size, config.hidden_size)
        self.wpe = Embedding(config.max_position_embeddings, config.hidden_size)
        self.drop = Dropout(config.embed_dropout)
        self.h = nn.ModuleList([GPTNeoBlock(config, i) for i in range(config.num_layers)])
        self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.post_init()


@positional_order(
    "input_ids past_key_values attention_mask token_type_ids position_ids head_mask inputs_embeds labels use_cache "
    "output_attentions output_hidden_states return_dict cache_position logits_to_keep **loss_kwargs"
)
class GPTNeoForCausalLM(heads.CausalLMHead, GPTNeoPreTrainedModel):
    """GPT-Neo that predicts the next token."""

    backbone_class = GPTNeoModel
    _tied_weights_keys: ClassVar[list[str]] = ["lm_head.weight"]


class GPTNeoForSequenceClassification(heads.SequenceClassificationHead, GPTNeoPreTrainedModel):
    """GPT-Neo that classifies sequences by their last token."""

    backbone_class = GPTNeoModel


class GPTNeoForTokenClassification(heads.TokenClassificationHead, GPTNeoPreTrainedModel):
    """GPT-Neo that classifies every token."""

    backbone_class = GPTNeoModel


class GPTNeoForQuestionAnswering(heads.QuestionAnsweringHead, GPTNeoPreTrainedModel):
    """GPT-Neo that finds the span of an answer."""

    backbone_class = GPTNeoModel
