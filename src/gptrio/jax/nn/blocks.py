"""The parts that blocks of several families are made of."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from gptrio.jax import cache
from gptrio.jax.nn.activations import activation
from gptrio.jax.nn.attention import AttentionOptions, attention
from gptrio.jax.nn.context import AttentionContext
from gptrio.jax.nn.linear import Dtype
from gptrio.jax.nn.masks import visible

BlockOutput = tuple[Array, Array]  # the result, and the weights of attention


class MultiHeadAttention(nn.Module):
    """Base of the attention layers; a family adds its projections, and says in `options` how it attends.

    The collection "cache" holds `cached_key` and `cached_value` (B, H, N, D), and `cache_index`, the number of columns
    stored so far.
    """

    def options(self) -> AttentionOptions:
        """How this layer attends."""
        raise TypeError(f"{type(self).__name__} does not say how it attends; define options()")

    @nn.compact
    def attend(self, q: Array, k: Array, v: Array, context: AttentionContext) -> tuple[Array, Array]:
        """Attend to the past and to the new keys; store the new keys and values if there is a cache, or is to be one.

        Args:
            q: queries (B, H, T, D).
            k: new keys (B, H, T, D).
            v: new values (B, H, T, D).
            context: of the forward.

        Returns:
            The result (B, T, H * D), and the weights (B, H, T, S).
        """
        options, length = self.options(), k.shape[2]
        start, columns = jnp.zeros((), jnp.int32), jnp.arange(length)
        if self.has_variable("cache", "cached_key"):
            k, v, start, columns = self._append(k, v, options.window)
        elif context.cache_length is not None:
            self._fill(k, v, cache.slots(context.cache_length, options.window))
        mask = visible(start + jnp.arange(length), columns, options.window, context.attention_mask)
        drops = options.dropout > 0 and not context.deterministic
        return attention(q, k, v, mask, options, self.make_rng("dropout") if drops else None)

    def _append(self, k: Array, v: Array, window: int | None) -> tuple[Array, Array, Array, Array]:
        """Store new keys and values; return all that are seen, the first new column, and the columns of the keys."""
        names = ("cached_key", "cached_value", "cache_index")
        keys, values, index = (self.variable("cache", name, jnp.zeros) for name in names)
        start, length, capacity = index.value, k.shape[2], keys.value.shape[2]
        rolls = capacity == window
        keys.value, k = cache.append(keys.value, k, start, rolls)
        values.value, v = cache.append(values.value, v, start, rolls)
        index.value = start + length
        return k, v, start, cache.visible_columns(capacity, length, start, rolls)

    def _fill(self, k: Array, v: Array, capacity: int) -> None:
        """Make the cache of this layer, with these first columns in it; `init` makes it empty."""
        length = 0 if self.is_initializing() else k.shape[2]
        for name, new in (("cached_key", k), ("cached_value", v)):
            self.variable("cache", name, cache.fill, new[:, :, :length], capacity)
        self.variable("cache", "cache_index", jnp.full, (), length, jnp.int32)


class MLP(nn.Module):
    """Two linear layers around an activation.

    Attributes:
        width: C.
        inner: width between the layers; 4 * C if None.
        act: name of the activation.
        dropout: of the result.
        linear: makes a layer of so many outputs.
    """

    width: int
    inner: int | None
    act: str
    dropout: float
    linear: Any

    def setup(self) -> None:
        """Make the layers."""
        self.c_fc = self.linear(4 * self.width if self.inner is None else self.inner)
        self.c_proj = self.linear(self.width)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: Array, deterministic: bool = True) -> Array:
        """Map (B, T, C) to (B, T, C)."""
        x = activation(self.act)(self.c_fc(x))
        return self.drop(self.c_proj(x), deterministic=deterministic)


class LayerNorm(nn.LayerNorm):
    """Layer norm with the variance taken around the mean, as PyTorch computes it."""

    use_fast_variance: bool = False


def normal(std: float) -> Any:
    """Draws new weights from a normal distribution."""
    return jax.nn.initializers.normal(std)


def kernels(config: Any, dtype: Dtype) -> dict[str, Any]:
    """Arguments that all linear layers of a model share."""
    return {"dtype": dtype, "kernel_init": normal(config.initializer_range)}
