"""The backbone modules: token and position tables, the blocks, and the norm after them."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from gptrio.jax.nn.blocks import LayerNorm, normal
from gptrio.jax.nn.context import AttentionContext
from gptrio.jax.nn.linear import Dtype, Embedding
from gptrio.jax.outputs import FlaxBaseModelOutput, FlaxModelOutput


class Blocks(nn.Module):
    """The L blocks, named "0" to "L - 1".

    Attributes:
        block_class: makes a block from `config`, its index and `dtype`.
        config: of the model.
        dtype: of the computation.
        gradient_checkpointing: compute blocks again in the backward pass.
    """

    block_class: Any
    config: Any
    dtype: Dtype = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """Make the blocks."""
        block = nn.remat(self.block_class) if self.gradient_checkpointing else self.block_class
        self.blocks = [block(self.config, i, self.dtype, name=str(i)) for i in range(self.config.num_hidden_layers)]

    def __call__(self, x: Array, context: AttentionContext) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
        """Map (B, T, C) to (B, T, C); the input of each block and the weights of its attention follow if needed."""
        states: list[Array] = []
        attentions: list[Array] = []
        for block in self.blocks:
            if context.need_states:
                states.append(x)
            x, weights = block(x, context)
            if context.need_weights:
                attentions.append(weights)
        return x, tuple(states), tuple(attentions)


class Backbone(nn.Module):
    """Base of the backbones; a family makes its parts in `setup`, and says what `embed` and the properties are.

    Attributes:
        config: of the model.
        dtype: of the computation; parameters keep theirs.
        gradient_checkpointing: compute blocks again in the backward pass.
        output_class: class of the result.
    """

    config: Any
    dtype: Dtype = jnp.float32
    gradient_checkpointing: bool = False

    output_class: ClassVar[type[FlaxModelOutput]] = FlaxBaseModelOutput

    def embed(self, input_ids: Array, position_ids: Array, deterministic: bool) -> Array:
        """Input (B, T, C) of the first block."""
        raise TypeError(f"{type(self).__name__} does not embed tokens; define embed()")

    def rotary_tables(self, position_ids: Array) -> tuple[Array, Array] | None:
        """Cosines and sines of the positions, or None where positions are embedded."""
        return None

    @property
    def blocks(self) -> Any:
        """The `Blocks`."""
        return self.h

    @property
    def final_norm(self) -> Any:
        """The norm after the last block."""
        return self.ln_f

    @property
    def token_table(self) -> Array:
        """(V, C) vectors of the tokens."""
        return self.wte.embedding

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
    ) -> FlaxModelOutput | tuple[Any, ...]:
        """Hidden states of tokens.

        Args:
            input_ids: (B, T); ids outside the vocabulary give NaN.
            attention_mask: (B, past + T, or more) 1 for real tokens, 0 for padding.
            position_ids: (B, T); columns by default. Negative ones, those of padding, count as 0.
            deterministic: no dropout; otherwise pass `rngs={"dropout": key}`.
            init_cache: make a cache with this forward in it, for T columns (True) or so many in all; apply the module
                with `mutable=["cache"]` to get it.
            output_attentions: also return the weights of attention.
            output_hidden_states: also return the input of each block, and the final states.
            return_dict: return an output object rather than a tuple.
        """
        rows, length = input_ids.shape
        if position_ids is None:
            position_ids = jnp.broadcast_to(jnp.arange(length), (rows, length))
        position_ids = jnp.maximum(position_ids, 0)
        context = AttentionContext(
            None if attention_mask is None else attention_mask != 0,
            self.rotary_tables(position_ids),
            deterministic,
            output_attentions,
            output_hidden_states,
            length if init_cache is True else init_cache or None,
        )
        x, states, attentions = self.blocks(self.embed(input_ids, position_ids, deterministic), context)
        x = self.final_norm(x)
        output = self.output_class(
            last_hidden_state=x,
            hidden_states=(*states, x) if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()


class LearnedPositionBackbone(Backbone):
    """A backbone with a table of positions (Radford et al., 2019).

    Attributes:
        block_class: class of the blocks.
        converts_tables: whether vectors are converted to `dtype`, rather than left in the parameters' type.
    """

    block_class: ClassVar[Any]
    converts_tables: ClassVar[bool] = False

    def setup(self) -> None:
        """Make the tables, the blocks and the norm."""
        config = self.config
        options = {
            "embedding_init": normal(config.initializer_range),
            "dtype": self.dtype if self.converts_tables else None,
        }
        self.wte = Embedding(config.vocab_size, config.hidden_size, **options)
        self.wpe = Embedding(config.max_position_embeddings, config.hidden_size, **options)
        self.drop = nn.Dropout(self.embedding_dropout())
        self.h = Blocks(self.block_class, config, self.dtype, self.gradient_checkpointing)
        self.ln_f = LayerNorm(config.layer_norm_epsilon, dtype=self.dtype)

    def embedding_dropout(self) -> float:
        """Probability of dropping an entry of the embeddings in training."""
        raise TypeError(f"{type(self).__name__} does not say; define embedding_dropout()")

    def embed(self, input_ids: Array, position_ids: Array, deterministic: bool) -> Array:
        """Token vectors plus position vectors."""
        return self.drop(self.wte(input_ids) + self.wpe(position_ids), deterministic=deterministic)
