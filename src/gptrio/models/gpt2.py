"""GPT-2 (Radford et al., 2019, "Language Models are Unsupervised Multitask Learners").

Shapes: `B` batch, `T` query length, `S` key length, `H` heads, `D` head width, `C` hidden size, `V` vocabulary.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from gptrio.config import GPT2Config
from gptrio.config.gpt2 import WEIGHT_NAMES
from gptrio.models.base import heads, inputs
from gptrio.models.base.backbone import LearnedPositionBackbone
from gptrio.models.base.part_arguments import takes_reference_arguments
from gptrio.models.base.pretrained import PreTrainedModel
from gptrio.models.base.pruning import head_features
from gptrio.models.base.signatures import BackboneInputs, overridable, positional_order
from gptrio.nn.activations import get_activation
from gptrio.nn.attention import split_heads
from gptrio.nn.attention_interface import Function, eager_attention_forward, unless_ours
from gptrio.nn.blocks import DROPOUTS, MLP, BlockOutput, MultiHeadAttention, PreNormBlock, causal_bias
from gptrio.nn.context import AttentionContext
from gptrio.nn.fast_call import Dropout, Embedding, LayerNorm
from gptrio.nn.linear import Conv1D, Linear, keep_inputs, keep_outputs
from gptrio.nn.losses import next_token_loss, token_loss
from gptrio.nn.replaced_parts import call_part
from gptrio.outputs import GPT2DoubleHeadsModelOutput

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes_reference_arguments(
    "past_key_values cache_position attention_mask head_mask encoder_hidden_states encoder_attention_mask "
    "output_attentions"
)
class GPT2Attention(MultiHeadAttention):
    """Multi-head attention to the past, or to an encoder's states."""

    def __init__(self, config: GPT2Config, layer_idx: int, is_cross_attention: bool = False) -> None:
        width = config.n_embd
        super().__init__(
            width, config.n_head, layer_idx, dropout=config.attn_pdrop, float32_scores=config.reorder_and_upcast_attn
        )
        self.scale_attn_weights = config.scale_attn_weights
        self.scale_attn_by_inverse_layer_idx = config.scale_attn_by_inverse_layer_idx
        self.config = config
        self.is_cross_attention = is_cross_attention
        if is_cross_attention:
            self.c_attn = Conv1D(2 * width, width)
            self.q_attn = Conv1D(width, width)
        else:
            self.c_attn = Conv1D(3 * width, width)
        self.c_proj = Conv1D(width, width)
        self.c_proj.init_gain = (2 * config.n_layer) ** -0.5
        self.resid_dropout = Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor | None]:
        """Map (B, T, C) to (B, T, C), and return the weights (B, H, T, S) if they are needed."""
        if self.is_cross_attention:
            q, encoder = split_heads(self.q_attn(x), self.head_dim), self._encoder_keys_and_values
            out, weights = context.attend_to_encoder(q, encoder, self.layer_idx, self.options())
        else:
            qkv = self.c_attn(x).view(*x.shape[:2], 3, -1, self.head_dim)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # (B, H, T, D)
            out, weights = context.attend(q, k, v, self.layer_idx, self.options())
        return self.resid_dropout(self.c_proj(out)), weights

    def _encoder_keys_and_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.c_attn(states).chunk(2, dim=-1)
        return split_heads(k, self.head_dim), split_heads(v, self.head_dim)

    def own_function(self, implementation: str) -> Function | None:
        """What a user has put in place of this module's `eager_attention_forward`."""
        return unless_ours(eager_attention_forward) if implementation == "eager" else None

    @property
    def projections(self) -> tuple[nn.Module, ...]:
        """The layer that computes queries, keys and values."""
        return (self.c_attn,)

    @property
    def output(self) -> nn.Module:
        """The linear layer after the heads."""
        return self.c_proj

    # attributes of Transformers' layer
    bias = property(causal_bias, doc="(1, 1, N, N) table of the causal mask, made when it is read.")
    masked_bias = property(lambda self: torch.tensor(-1e4), doc="Score of a key that no query sees.")
    embed_dim = property(attrgetter("config.n_embd"), doc="C of the input.")
    reorder_and_upcast_attn = property(attrgetter("config.reorder_and_upcast_attn"))  # see `GPT2Config`

    @property
    def scale(self) -> float:
        """Factor of the scores at present."""
        scale = self.scaling if self.scale_attn_weights else 1.0
        return scale / (self.layer_idx + 1) if self.scale_attn_by_inverse_layer_idx else scale

    @property
    def split_size(self) -> int:
        """Width of all queries, keys or values together."""
        return self.num_heads * self.head_dim

    def keep_heads(self, kept: list[int]) -> None:
        """Remove all heads but those with the indices `kept`."""
        features = head_features(kept, self.head_dim)
        width = self.c_attn.nf // 3
        keep_outputs(self.c_attn, torch.cat([features + part * width for part in range(3)]))
        keep_inputs(self.c_proj, features)


class GPT2MLP(MLP):
    """Two linear layers around an activation."""

    def __init__(self, intermediate_size: int | None, config: GPT2Config) -> None:
        super().__init__(config.n_embd, intermediate_size, config.activation_function, config.resid_pdrop, Conv1D)


@takes_reference_arguments(
    "past_key_values cache_position attention_mask head_mask encoder_hidden_states encoder_attention_mask use_cache "
    "output_attentions"
)
class GPT2Block(PreNormBlock):
    """Attention, attention to an encoder's states if the configuration has it, and an MLP, each after a norm."""

    compiled_modules: ClassVar = {
        "attn": (GPT2Attention,),
        "attn.attn_dropout": DROPOUTS,
        "attn.resid_dropout": DROPOUTS,
        "mlp": (GPT2MLP,),
        "mlp.dropout": DROPOUTS,
    }

    def __init__(self, config: GPT2Config, layer_idx: int) -> None:
        super().__init__()
        width, eps = config.n_embd, config.layer_norm_epsilon
        self.ln_1 = LayerNorm(width, eps)
        self.attn = GPT2Attention(config, layer_idx)
        self.ln_2 = LayerNorm(width, eps)
        if config.add_cross_attention:
            self.crossattention = GPT2Attention(config, layer_idx, is_cross_attention=True)
            self.ln_cross_attn = LayerNorm(width, eps)
        self.mlp = GPT2MLP(config.n_inner, config)
        self.mlp.c_proj.init_gain = self.attn.c_proj.init_gain

    def forward(self, x: Tensor, context: AttentionContext) -> BlockOutput:
        """Map (B, T, C) to (B, T, C) at the selected positions; if needed, weights of both attentions follow."""
        attended, *weights = call_part(self.attn, self.ln_1(x), context)
        x = context.select(x)
        x = x + attended
        if context.cross is not None:
            attended, cross_weights = call_part(self.crossattention, self.ln_cross_attn(x), context)
            x = x + attended
            weights.append(cross_weights)
        x = x + self.mlp(self.ln_2(x))
        return (x, *weights) if context.need_weights else (x,)


class GPT2PreTrainedModel(PreTrainedModel):
    """Base of the GPT-2 classes."""

    config_class = GPT2Config
    base_model_prefix = WEIGHT_NAMES.base_model_prefix
    has_cross_attention = True
    _no_split_modules: ClassVar[list[str]] = ["GPT2Block"]
    computed_buffers = WEIGHT_NAMES.computed_buffers


@positional_order(
    "input_ids past_key_values cache_position attention_mask token_type_ids position_ids head_mask inputs_embeds "
    "encoder_hidden_states encoder_attention_mask use_cache output_attentions output_hidden_states return_dict **kwargs"
)
class GPT2Model(LearnedPositionBackbone, GPT2PreTrainedModel):
    """The GPT-2 backbone: hidden states without a head."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        config = self.config
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd)
        self.drop = Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([GPT2Block(config, i) for i in range(config.n_layer)])
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.post_init()


class GPT2LMHeadModel(heads.CausalLMHead, GPT2PreTrainedModel):
    """GPT-2 that predicts the next token."""

    backbone_class = GPT2Model
    _tied_weights_keys: ClassVar[list[str]] = ["lm_head.weight"]


class GPT2SequenceSummary(nn.Module):
    """The state of one token of a sequence (or the mean of all), projected.

    Args:
        config: its `summary_type`, `summary_use_proj`, `summary_proj_to_labels`, `summary_activation`,
            `summary_first_dropout`, `num_labels` and `hidden_size` are used.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.summary_type = config.summary_type
        width = config.num_labels if config.summary_proj_to_labels and config.num_labels > 0 else config.hidden_size
        self.summary = Linear(config.hidden_size, width) if config.summary_use_proj else nn.Identity()
        self.activation = get_activation(config.summary_activation) if config.summary_activation else nn.Identity()
        self.first_dropout = nn.Dropout(config.summary_first_dropout)
        self.last_dropout = nn.Dropout(getattr(config, "summary_last_dropout", None) or 0.0)

    def forward(self, states: Tensor, cls_index: Tensor | None = None) -> Tensor:
        """Summarise (..., T, C).

        Args:
            states: (..., T, C).
            cls_index: (...) index of the token to read, for "cls_index"; the last one if None.

        Returns:
            (..., C) or (..., num_labels).
        """
        summary = self.summary(self.first_dropout(self._read(states, cls_index)))
        return cast(Tensor, self.last_dropout(self.activation(summary)))

    def _read(self, states: Tensor, cls_index: Tensor | None) -> Tensor:
        if self.summary_type == "mean":
            return states.mean(dim=1)
        if self.summary_type == "first":
            return states[:, 0]
        if self.summary_type == "last":
            return states[:, -1]
        if cls_index is None:
            return states[..., -1, :]
        index = cls_index[..., None, None].expand(*cls_index.shape, 1, states.shape[-1])
        return torch.gather(states, -2, index).squeeze(-2)


@positional_order(
    "input_ids past_key_values cache_position attention_mask token_type_ids position_ids head_mask inputs_embeds "
    "mc_token_ids labels mc_labels use_cache output_attentions output_hidden_states return_dict **loss_kwargs"
)
class GPT2DoubleHeadsModel(heads.CausalLMHead, GPT2PreTrainedModel):
    """GPT-2 that predicts the next token and chooses among several continuations."""

    backbone_class = GPT2Model
    full_precision_modules = ("multiple_choice_head",)
    _tied_weights_keys: ClassVar[list[str]] = ["lm_head.weight"]

    def build_head(self) -> None:
        """Create both heads; a choice has one score."""
        self.config.num_labels = 1
        super().build_head()
        self.multiple_choice_head = GPT2SequenceSummary(self.config)

    @overridable
    def forward(
        self,
        mc_token_ids: Tensor | None = None,
        labels: Tensor | None = None,
        mc_labels: Tensor | None = None,
        return_dict: bool | None = None,
        loss_kwargs: dict[str, Any] | None = None,
        **backbone_inputs: Unpack[BackboneInputs],
    ) -> heads.Result:
        """Scores of every next token and of every choice.

        Args:
            mc_token_ids: (B, choices) index of the token that the choice is read from; the last one by default.
            labels: (B, choices, T) the input itself, shifted inside; -100 does not count.
            mc_labels: (B,) the right choice.
            return_dict: return a `ModelOutput` rather than a tuple.
            loss_kwargs: other keywords, see `CausalLMHead.forward`.
            backbone_inputs: see `Backbone.forward`; `input_ids` are (B, choices, T), and the others likewise.

        Returns:
            logits (B, choices, T, V), mc_logits (B, choices), the losses whose labels were given, and what the backbone
            returned.
        """
        loss_kwargs = inputs.loss_options(loss_kwargs)
        out = self._run_backbone(backbone_inputs)
        logits = cast(nn.Module, self.lm_head)(out.last_hidden_state)
        mc_logits = self.multiple_choice_head(out.last_hidden_state, mc_token_ids).squeeze(-1)  # (B, choices)
        loss = None if labels is None else next_token_loss(logits, labels, **loss_kwargs)
        mc_loss = None
        if mc_labels is not None:
            mc_loss = token_loss(mc_logits.view(-1, mc_logits.shape[-1]), mc_labels.view(-1))
        output = GPT2DoubleHeadsModelOutput(
            loss, mc_loss, logits, mc_logits, out.past_key_values, out.hidden_states, out.attentions
        )
        return self._finish(output, return_dict)


class GPT2ForSequenceClassification(heads.SequenceClassificationHead, GPT2PreTrainedModel):
    """GPT-2 that classifies sequences by their last token."""

    backbone_class = GPT2Model


class GPT2ForTokenClassification(heads.TokenClassificationHead, GPT2PreTrainedModel):
    """GPT-2 that classifies every token."""

    backbone_class = GPT2Model


class GPT2ForQuestionAnswering(heads.QuestionAnsweringHead, GPT2PreTrainedModel):
    """GPT-2 that finds the span of an answer."""

    backbone_class = GPT2Model
