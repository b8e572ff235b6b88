"""The parts that blocks of several families are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from gptrio.nn.activations import activation
from gptrio.nn.attention import Drop
from gptrio.nn.context import AttentionContext, AttentionOptions
from gptrio.nn.fast_call import Dropout, FastCallModule, LayerNorm, is_dispatch_skipped, is_watched
from gptrio.nn.linear import Conv1D, Linear, feed_forward

BlockOutput = tuple[Tensor | None, ...]  # the result; then weights of self- and of cross-attention, as far as shown


@dataclass(frozen=True)
class BlockParts:
    """What a pre-norm block computes, part by part.

    Attributes:
        norms: of attention's input and of the MLP's.
        projections: to queries, keys and values: one layer for all, or three.
        places: of the first head's key and value in what the projections give, put end to end, where its query is at 0,
            and features from head to head.
        attention: knows the scale and the heads.
        output: attention's last layer.
        mlp: the layer up, the activation, and the layer down.
        parallel: attention and MLP read the same input.
    """

    norms: tuple[nn.Module, nn.Module]
    projections: tuple[nn.Module, ...]
    places: tuple[int, int, int]
    attention: MultiHeadAttention
    output: nn.Module
    mlp: tuple[nn.Module, nn.Module, nn.Module]
    parallel: bool = False


class MultiHeadAttention(FastCallModule):
    """What attention layers share; a family adds its projections.

    Args:
        width: C, divided among the heads.
        heads: H.
        layer_idx: index of the layer.
        scale: factor of the scores; 1 / sqrt(head width) if None.
        dropout: probability of dropping an attention weight in training; None for a family without a module for it.
        window: most positions a query sees, itself included; None for all.
        float32_scores: take scores in float32 whatever the dtype.
    """

    is_causal: ClassVar[bool] = True

    def __init__(
        self,
        width: int,
        heads: int,
        layer_idx: int,
        *,
        scale: float | None = None,
        dropout: float | None = None,
        window: int | None = None,
        float32_scores: bool = False,
    ) -> None:
        """Remember the settings."""
        super().__init__()
        self.layer_idx = layer_idx
        self.all_heads = heads
        self.pruned_heads: set[int] = set()
        self.head_dim = width // heads
        self.scale = self.head_dim**-0.5 if scale is None else scale
        self.window = window
        self.float32_scores = float32_scores
        if dropout is not None:
            self.attn_dropout = Dropout(dropout)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor | None]:
        """Map q, k, v (B, H, T, D) to (B, T, H * D) and the weights, see `AttentionContext.attend`."""
        return context.attend(q, k, v, self.layer_idx, self.options(context))

    def options(self, context: AttentionContext) -> AttentionOptions:
        """How this layer attends now."""
        return AttentionOptions(
            self.scale, self.window, self.dropout_rate, self.float32_scores, self.drop, self._shows_weights(context)
        )

    @property
    def num_heads(self) -> int:
        """Heads that are left."""
        return self.all_heads - len(self.pruned_heads)

    @property
    def drop(self) -> Drop | None:
        """The module that drops weights, or None."""
        return cast("Drop | None", self._modules.get("attn_dropout"))

    @property
    def dropout_rate(self) -> float:
        """Probability of dropping a weight now."""
        return float(getattr(self.attn_dropout, "p", 0.0)) if self.training else 0.0

    def _shows_weights(self, context: AttentionContext) -> bool:
        """Whether someone may look at the weights, or change them: a hook, or a module put in place of the dropout.

        Layers of the eager back end return weights always, as the reference's do.
        """
        dropout = self._modules.get("attn_dropout")
        if type(dropout) not in _DROPOUTS:
            return True
        return (context.implementation == "eager" and not is_dispatch_skipped()) or is_watched(self, dropout)


_DROPOUTS = (Dropout, nn.Dropout, nn.Identity, type(None))  # which leave weights as they are in evaluation


class MLP(FastCallModule):
    """Two linear layers around an activation.

    Args:
        width: C.
        inner: width between the layers; 4 * C if None.
        act: name of the activation.
        dropout: of the result.
        linear: kind of the layers, called with (outputs, inputs) for `Conv1D` and (inputs, outputs) for `Linear`.
    """

    def __init__(self, width: int, inner: int | None, act: str, dropout: float, linear: type[Conv1D | Linear]) -> None:
        """Create the layers."""
        super().__init__()
        inner = 4 * width if inner is None else inner
        self.c_fc, self.c_proj = (
            Conv1D(outputs, inputs) if issubclass(linear, Conv1D) else linear(inputs, outputs)
            for inputs, outputs in ((width, inner), (inner, width))
        )
        self.act = activation(act)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return cast(Tensor, self.dropout(feed_forward(x, self.c_fc, self.act, self.c_proj)))


class Block(FastCallModule):
    """What blocks share.

    Attributes:
        gradient_checkpointing: compute the block again in the backward pass; see
            `PreTrainedModel.gradient_checkpointing_enable`.
    """

    gradient_checkpointing: bool = False


class PreNormBlock(Block):
    """Pre-norm block: `x + attn(ln_1(x))`, then `x + mlp(ln_2(x))` (Radford et al., 2019).

    Args:
        attn: maps (x, context) to (B, T, C) and weights.
        mlp: maps (B, T, C) to (B, T, C).
        width: C.
        eps: added to the variance in layer norms.
        crossattention: maps (x, context) likewise, by what an encoder's states hold; None for no such part.

    Attributes:
        always_shows_weights: weights are returned even if the context needs none, as far as there are any.
    """

    always_shows_weights: ClassVar[bool] = False

    def __init__(
        self, attn: nn.Module, mlp: nn.Module, width: int, eps: float, crossattention: nn.Module | None = None
    ) -> None:
        """Put the parts together."""
        super().__init__()
        self.ln_1 = LayerNorm(width, eps)
        self.attn = attn
        self.ln_2 = LayerNorm(width, eps)
        if crossattention is not None:
            self.crossattention = crossattention
            self.ln_cross_attn = LayerNorm(width, eps)
        self.mlp = mlp

    @property
    def self_attention(self) -> Any:
        """The attention whose heads can be pruned."""
        return self.attn

    def parts(self) -> BlockParts:
        """The parts of this block without cross-attention; heads stand side by side in queries, keys and values."""
        attn, mlp = self.self_attention, cast(MLP, self.mlp)
        width = attn.all_heads * attn.head_dim
        return BlockParts(
            (self.ln_1, self.ln_2),
            attn.projections,
            (width, 2 * width, attn.head_dim),
            attn,
            attn.output,
            (mlp.c_fc, mlp.act, mlp.c_proj),
        )

    def forward(self, x: Tensor, context: AttentionContext) -> BlockOutput:
        """Map (B, T, C) to (B, T, C) or what is wanted of it; weights of self- and cross-attention follow if shown."""
        attended, *weights = self.attn(self.ln_1(x), context)
        x = context.wanted(x) + attended
        if context.cross is not None:
            attended, cross_weights = self.crossattention(self.ln_cross_attn(x), context)
            x = x + attended
            weights.append(cross_weights)
        x = x + self.mlp(self.ln_2(x))
        return (x, *weights) if context.need_weights or self.always_shows_weights else (x,)
