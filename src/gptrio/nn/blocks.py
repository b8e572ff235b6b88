"""The parts that blocks of several families are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from gptrio.nn.activations import get_activation
from gptrio.nn.attention import AttentionOptions, Drop
from gptrio.nn.fast_call import Dropout, FastCallModule, LayerNorm, is_watched
from gptrio.nn.linear import Conv1D, Linear, feed_forward
from gptrio.nn.masks import causal_table

BlockOutput = tuple[Tensor | None, ...]  # the result; then, if needed, the weights of self- and of cross-attention


DROPOUTS = (Dropout, nn.Dropout, nn.Identity)  # modules that return their input in evaluation


@dataclass(frozen=True)
class BlockSpec:
    """What a pre-norm block computes: `x + output(attend(qkv(norm(x))))`, then `x + down(act(up(norm(x))))`.

    Attributes:
        norms: of attention's input and of the MLP's.
        projections: to queries, keys and values: one layer for all, or three.
        qkv_offsets: (key of head 0, value of head 0, stride between heads) in features of the concatenated outputs of
            the projections; the query of head 0 is at 0.
        attention: has `all_heads`, `head_dim`, `scale`, `window` and `layer_idx`.
        output: the linear layer after attention.
        mlp: the layer up, the activation, and the layer down.
        is_parallel: attention and MLP read the same input, and both are added to it.
    """

    norms: tuple[nn.Module, nn.Module]
    projections: tuple[nn.Module, ...]
    qkv_offsets: tuple[int, int, int]
    attention: MultiHeadAttention
    output: nn.Module
    mlp: tuple[nn.Module, nn.Module, nn.Module]
    is_parallel: bool = False


class MultiHeadAttention(FastCallModule):
    """Base of the attention layers; a family adds its projections.

    Args:
        width: C, divided among the heads.
        heads: H.
        layer_idx: index of the layer.
        scale: factor of the scores; 1 / sqrt(head width) if None.
        dropout: probability of dropping an attention weight in training; None for a family without a module for it.
        window: most positions a query sees, itself included; None for all.
        float32_scores: compute scores in float32 for any dtype.
    """

    is_causal: bool = True  # which an instance may set to False, see the family's `options`

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
        super().__init__()
        self.layer_idx = layer_idx
        self.all_heads = heads
        self.pruned_heads: set[int] = set()
        self.head_dim = width // heads
        self.scaling = self.head_dim**-0.5 if scale is None else scale
        self.window = window
        self.float32_scores = float32_scores
        if dropout is not None:
            self.attn_dropout = Dropout(dropout)

    def options(self) -> AttentionOptions:
        """How this layer attends at present."""
        return AttentionOptions(
            self.scale,
            self.window,
            self.dropout_rate,
            self.float32_scores,
            self.drop,
            self._are_weights_observed(),
            self,
        )

    @property
    def scale(self) -> float:
        """Factor of the scores at present."""
        return self.scaling

    def own_function(self, implementation: str) -> Callable[..., Any] | None:
        """What a user has put in place of the function of this package that a back end calls; None if nothing."""
        return None

    @property
    def num_heads(self) -> int:
        """Number of heads after pruning."""
        return self.all_heads - len(self.pruned_heads)

    @property
    def drop(self) -> Drop | None:
        """The module that drops weights, or None."""
        return cast("Drop | None", self._modules.get("attn_dropout"))

    @property
    def dropout_rate(self) -> float:
        """Probability of dropping a weight at present."""
        return float(getattr(self.attn_dropout, "p", 0.0)) if self.training else 0.0

    def _are_weights_observed(self) -> bool:
        """Whether a hook, or a module in place of the dropout, may read or change the weights."""
        dropout = self._modules.get("attn_dropout")
        return (dropout is not None and type(dropout) not in DROPOUTS) or is_watched(self, dropout)


def causal_bias(attention: Any) -> Tensor:
    """(1, 1, N, N) bool, True where a query sees a key, for code written over Transformers' layers."""
    device = next(attention.parameters()).device
    return causal_table(attention.config.max_position_embeddings, attention.window, device)


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
        super().__init__()
        inner = 4 * width if inner is None else inner
        self.c_fc, self.c_proj = (
            Conv1D(outputs, inputs) if issubclass(linear, Conv1D) else linear(inputs, outputs)
            for inputs, outputs in ((width, inner), (inner, width))
        )
        self.act = get_activation(act)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return cast(Tensor, self.dropout(feed_forward(x, self.c_fc, self.act, self.c_proj)))


class Block(FastCallModule):
    """Base of the blocks of all families.

    A block has a compiled decoding step if `spec` and `compiled_modules` describe what it computes.

    Attributes:
        gradient_checkpointing: compute the block again in the backward pass; see
            `PreTrainedModel.gradient_checkpointing_enable`.
        compiled_modules: the classes, by path, of the modules whose forward `spec` describes, or which return their
            input in evaluation; None for a block without `spec`. A block with a module of another class at one of
            these paths has no compiled step. Classes outside this package do not inherit this: they set their own.
    """

    gradient_checkpointing: bool = False
    compiled_modules: ClassVar[Mapping[str, tuple[type, ...]] | None] = None

    def spec(self) -> BlockSpec:
        """What this block computes in evaluation, without hooks and cross-attention."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it computes")


class PreNormBlock(Block):
    """A block with the parts `ln_1`, `attn`, `ln_2` and `mlp` (Radford et al., 2019); a family writes its forward."""

    ln_1: LayerNorm
    attn: nn.Module
    ln_2: LayerNorm
    mlp: MLP

    @property
    def self_attention(self) -> Any:
        """The attention whose heads can be pruned."""
        return self.attn

    def spec(self) -> BlockSpec:
        """What this block computes; queries, keys and values each have their heads side by side."""
        attn, mlp = self.self_attention, self.mlp
        width = attn.all_heads * attn.head_dim
        return BlockSpec(
            (self.ln_1, self.ln_2),
            attn.projections,
            (width, 2 * width, attn.head_dim),
            attn,
            attn.output,
            (mlp.c_fc, mlp.act, mlp.c_proj),
        )
