"""The one attention call. Its arguments say what is computed, not how.

Shapes: `q` (B, H, T, D); `k`, `v` (B, H, S, D); weights (B, H, T, S); result (B, T, H * D).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class AttentionOptions(NamedTuple):
    """How a layer attends.

    Attributes:
        scale: factor of the scores.
        window: most positions a query sees, itself included; None for all.
        dropout: probability of dropping an attention weight in training.
        float32_scores: compute scores in float32 whatever the inputs' dtype.
    """

    scale: float
    window: int | None = None
    dropout: float = 0.0
    float32_scores: bool = False


def attention(
    q: Array, k: Array, v: Array, mask: Array, options: AttentionOptions, dropout_rng: Array | None = None
) -> tuple[Array, Array]:
    """Scaled dot-product attention (Vaswani et al., 2017).

    A query that sees no key attends evenly to all of them, so that no row is ever NaN.

    Args:
        q: queries (B, H, T, D).
        k: keys (B, H, S, D).
        v: values (B, H, S, D).
        mask: bool (B or 1, 1, T, S), True for keys that the query sees.
        options: of the layer.
        dropout_rng: key of the dropped weights; None to drop none.

    Returns:
        The result (B, T, H * D), and the weights (B, H, T, S).
    """
    kind = jnp.float32 if options.float32_scores else None
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=kind) * options.scale
    scores = jnp.where(mask, scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    if dropout_rng is not None:
        kept = jax.random.bernoulli(dropout_rng, 1 - options.dropout, weights.shape)
        weights = jnp.where(kept, weights / (1 - options.dropout), 0)
    return merge_heads(jnp.einsum("bhts,bhsd->bhtd", weights, v)), weights


def split_heads(x: Array, head_width: int) -> Array:
    """(B, T, H * D) to (B, H, T, D)."""
    return x.reshape(*x.shape[:2], -1, head_width).swapaxes(1, 2)


def merge_heads(x: Array) -> Array:
    """(B, H, T, D) to (B, T, H * D)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
