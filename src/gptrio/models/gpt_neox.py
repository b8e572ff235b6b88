"""GPT-NeoX (Black et al., 2022, "GPT-NeoX-20B"), and Pythia (Biderman et al., 2023).

Shapes: `B` batch, `T` query length, `H` heads, `D` head width, `R` rotated dimensions, `C` hidden size, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import ClassVar, cast

from torch import Tensor, nn

from gptrio.config import GPTNeoXConfig
from gptrio.config.gpt_neox import WEIGHT_NAMES
from gptrio.config.rotary import Frequencies, RotarySettings
from gptrio.errors import InputError
from gptrio.models.base import heads
from gptrio.models.base.backbone import EMBEDDINGS, Backbone
from gptrio.models.base.inputs import warn_once
from gptrio.models.base.part_arguments import takes_reference_arguments
from gptrio.models.base.pretrained import PreTrainedModel
from gptrio.models.base.pruning import head_features
from gptrio.models.base.signatures import positional_order
from gptrio.nn.activations import get_activation
from gptrio.nn.attention import AttentionOptions
from gptrio.nn.attention_interface import Function, eager_attention_forward, unless_ours
from gptrio.nn.blocks import DROPOUTS, Block, BlockOutput, BlockSpec, MultiHeadAttention
from gptrio.nn.context import AttentionContext
from gptrio.nn.fast_call import Dropout, Embedding, FastCallModule, LayerNorm
from gptrio.nn.linear import Linear, feed_forward, keep_inputs, keep_outputs
from gptrio.nn.replaced_parts import call_part
from gptrio.nn.rotary import ROPE_INIT_FUNCTIONS, RotaryEmbedding, RotaryTables, rotate


@takes_reference_arguments(
    "attention_mask head_mask layer_past output_attentions cache_position position_embeddings", mask_is_causal=False
)
class GPTNeoXAttention(MultiHeadAttention):
    """Multi-head attention to the past, with rotary positions."""

    def __init__(self, config: GPTNeoXConfig, layer_idx: int) -> None:
        width = config.hidden_size
        super().__init__(width, config.num_attention_heads, layer_idx)
        self.config = config
        self.attention_dropout = config.attention_dropout
        self.query_key_value = Linear(width, 3 * width, bias=config.attention_bias)
        self.dense = Linear(width, width, bias=config.attention_bias)

    def forward(self, x: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor | None]:
        """Map (B, T, C) to (B, T, C), and return the weights (B, H, T, S) if they are needed."""
        qkv = self.query_key_value(x).view(*x.shape[:2], -1, 3, self.head_dim)  # each head has its own q, k, v
        qkv = qkv.transpose(1, 2)  # (B, H, T, 3, D)
        if context.rotary is None:
            raise InputError("GPT-NeoX needs position_embeddings: the cosines and sines of model.gpt_neox.rotary_emb")
        q, k = rotate(qkv[..., :2, :], context.rotary).unbind(-2)
        out, weights = context.attend(q, k, qkv[..., 2, :], self.layer_idx, self.options())
        return self.dense(out), weights

    def options(self) -> AttentionOptions:
        """How this layer attends at present; of the families, only this one's `sdpa` reads `is_causal`."""
        return super().options()._replace(causal=self.is_causal)

    def own_function(self, implementation: str) -> Function | None:
        """What a user has put in place of this module's `eager_attention_forward`."""
        return unless_ours(eager_attention_forward) if implementation == "eager" else None

    # read-only attributes of Transformers' layer
    head_size = property(attrgetter("head_dim"), doc="Width of a head.")

    @property
    def rotary_ndims(self) -> int:
        """Rotated dimensions of a head."""
        return int(self.head_dim * self.config.rotary_pct)

    @property
    def dropout_rate(self) -> float:
        """Probability of dropping a weight now."""
        return self.attention_dropout if self.training else 0.0

    def keep_heads(self, kept: list[int]) -> None:
        """Remove all heads but those with the indices `kept`."""
        keep_outputs(self.query_key_value, head_features(kept, 3 * self.head_dim))
        keep_inputs(self.dense, head_features(kept, self.head_dim))


class GPTNeoXRotaryEmbedding(RotaryEmbedding):
    """Rotary positions as the configuration stretches them."""

    def __init__(self, config: GPTNeoXConfig, device: object = None) -> None:
        super().__init__(RotarySettings.of(config))
        self.config = config

    @property
    def rope_init_fn(self) -> Callable[..., Frequencies]:
        """What computes inverse frequencies and the factor from (config, device, seq_len)."""
        return ROPE_INIT_FUNCTIONS[self.rope_type]


class GPTNeoXMLP(FastCallModule):
    """Two linear layers around an activation."""

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = Linear(config.intermediate_size, config.hidden_size)
        self.act = get_activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return feed_forward(x, self.dense_h_to_4h, self.act, self.dense_4h_to_h)


@takes_reference_arguments(
    "attention_mask position_ids head_mask use_cache layer_past output_attentions cache_position position_embeddings",
    mask_is_causal=False,
)
class GPTNeoXLayer(Block):
    """Pre-norm block, with attention and MLP side by side or one after the other."""

    compiled_modules: ClassVar = {
        "attention": (GPTNeoXAttention,),
        "mlp": (GPTNeoXMLP,),
        "post_attention_dropout": DROPOUTS,
        "post_mlp_dropout": DROPOUTS,
    }

    def __init__(self, config: GPTNeoXConfig, layer_idx: int) -> None:
        super().__init__()
        self.use_parallel_residual = config.use_parallel_residual
        self.input_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.post_attention_dropout = Dropout(config.hidden_dropout)
        self.post_mlp_dropout = Dropout(config.hidden_dropout)
        self.attention = GPTNeoXAttention(config, layer_idx)
        self.mlp = GPTNeoXMLP(config)

    @property
    def self_attention(self) -> GPTNeoXAttention:
        """The attention whose heads can be pruned."""
        return self.attention

    def spec(self) -> BlockSpec:
        """What this block computes; each head has its query, key and value side by side."""
        width = self.attention.head_dim
        return BlockSpec(
            (self.input_layernorm, self.post_attention_layernorm),
            (self.attention.query_key_value,),
            (width, 2 * width, 3 * width),
            self.attention,
            self.attention.dense,
            (self.mlp.dense_h_to_4h, self.mlp.act, self.mlp.dense_4h_to_h),
            self.use_parallel_residual,
        )

    def forward(self, x: Tensor, context: AttentionContext) -> BlockOutput:
        """Map (B, T, C) to (B, T, C) at the selected positions; the weights of attention follow if they are needed."""
        attended, weights = call_part(self.attention, self.input_layernorm(x), context)
        attended = self.post_attention_dropout(attended)
        x = context.select(x)
        if self.use_parallel_residual:
            x = self._mlp(x) + attended + x
        else:
            x = x + attended
            x = x + self._mlp(x)
        return (x, weights) if context.need_weights else (x,)

    def _mlp(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.post_mlp_dropout(self.mlp(self.post_attention_layernorm(x))))


class GPTNeoXPreTrainedModel(PreTrainedModel):
    """Base of the GPT-NeoX classes."""

    config_class = GPTNeoXConfig
    base_model_prefix = WEIGHT_NAMES.base_model_prefix
    _no_split_modules: ClassVar[list[str]] = ["GPTNeoXLayer"]
    _supports_flex_attn: ClassVar[bool] = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"attention.bias", r"attention.masked_bias"]
    computed_buffers = WEIGHT_NAMES.computed_buffers
    key_aliases = WEIGHT_NAMES.key_aliases


@positional_order(
    "input_ids attention_mask position_ids head_mask inputs_embeds past_key_values use_cache output_attentions "
    "output_hidden_states cache_position return_dict **kwargs"
)
class GPTNeoXModel(Backbone, GPTNeoXPreTrainedModel):
    """The GPT-NeoX backbone: hidden states without a head."""

    mask_fully_padded_rows = False
    positions_are_relative = True
    compiled_modules: ClassVar = {
        "embed_in": EMBEDDINGS,
        "emb_dropout": DROPOUTS,
        "rotary_emb": (GPTNeoXRotaryEmbedding,),
    }

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__(config)
        config = self.config
        self.embed_in = Embedding(config.vocab_size, config.hidden_size)
        self.emb_dropout = Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList([GPTNeoXLayer(config, i) for i in range(config.num_hidden_layers)])
        self.final_layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.rotary_emb = GPTNeoXRotaryEmbedding(config)
        self.post_init()

    def embed(self, x: Tensor, position_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Dropout; positions are rotations, and there are no token types."""
        if token_type_ids is not None:
            warn_once("GPT-NeoX has no token types, so token_type_ids have no effect; leave them out")
        return cast(Tensor, self.emb_dropout(x))

    def rotary_tables(self, x: Tensor, position_ids: Tensor) -> RotaryTables:
        """Cosines and sines, each (B or 1, 1, T, 1, R)."""
        cos, sin = self.rotary_emb(x, position_ids)  # (B or 1, T, R)
        return cos[:, None, :, None], sin[:, None, :, None]

    @property
    def blocks(self) -> nn.ModuleList:
        """The L blocks."""
        return self.layers

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block."""
        return self.final_layer_norm

    def get_input_embeddings(self) -> nn.Module:
        """The token table."""
        return self.embed_in

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token table."""
        self.embed_in = cast(Embedding, value)


@positional_order(
    "input_ids attention_mask position_ids inputs_embeds head_mask past_key_values labels use_cache output_attentions "
    "output_hidden_states cache_position logits_to_keep return_dict **loss_kwargs"
)
class GPTNeoXForCausalLM(heads.CausalLMHead, GPTNeoXPreTrainedModel):
    """GPT-NeoX that predicts the next token."""

    backbone_class = GPTNeoXModel
    head_name = "embed_out"
    _tied_weights_keys: ClassVar[list[str]] = ["embed_out.weight"]


@positional_order(
    "input_ids attention_mask position_ids inputs_embeds head_mask past_key_values labels use_cache output_attentions "
    "output_hidden_states return_dict"
)
class GPTNeoXForSequenceClassification(heads.SequenceClassificationHead, GPTNeoXPreTrainedModel):
    """GPT-NeoX that classifies sequences by their last token."""

    backbone_class = GPTNeoXModel


class GPTNeoXForTokenClassification(heads.TokenClassificationHead, GPTNeoXPreTrainedModel):
    """GPT-NeoX that classifies every token."""

    backbone_class = GPTNeoXModel


class GPTNeoXForQuestionAnswering(heads.QuestionAnsweringHead, GPTNeoXPreTrainedModel):
    """GPT-NeoX that finds the span of an answer."""

    backbone_class = GPTNeoXModel
