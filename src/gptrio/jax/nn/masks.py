"""Which keys a query may attend to, from their positions."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def visible(
    query_positions: Array, key_positions: Array, window: int | None = None, attention_mask: Array | None = None
) -> Array:
    """Which of `S` keys each of `T` queries may attend to.

    Args:
        query_positions: (T,) columns of the queries in the whole sequence, padding counted.
        key_positions: (S,) columns of the keys, likewise; negative for slots of a cache that hold nothing.
        window: a query sees at most this many positions, itself included; None for all.
        attention_mask: (B, columns) True for real tokens; columns beyond it count as real. None if all are real.

    Returns:
        bool (B or 1, 1, T, S).
    """
    distance = query_positions[:, None] - key_positions  # (T, S)
    seen = (distance >= 0) & (key_positions >= 0)
    if window is not None:
        seen &= distance < window
    if attention_mask is None:
        return seen[None, None]
    is_real = jnp.take(attention_mask, key_positions, axis=1, mode="fill", fill_value=True)  # (B, S)
    return seen & is_real[:, None, None]
