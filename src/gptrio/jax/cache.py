"""Keys and values of the past of one layer, in arrays of a fixed length, as pure functions.

A layer that sees everything has a slot for every column of the sequence. A layer with a window has one slot for each
position of the window, and column `p` is in slot `p % window`: memory does not grow with the sequence.

Shapes: `B` batch, `H` heads, `T` new columns, `N` slots, `D` head width.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax


def slots(length: int, window: int | None) -> int:
    """Number of slots of a layer in a cache for sequences of `length` columns."""
    return length if window is None else min(length, window)


def fill(new: Array, capacity: int) -> Array:
    """Slots that hold the newest of the first T columns of a sequence.

    Args:
        new: (B, H, T, D) keys or values of columns 0 to T - 1.
        capacity: N.

    Returns:
        (B, H, N, D), zeros in slots that hold nothing.
    """
    length = new.shape[2]
    if length <= capacity:
        return jnp.pad(new, ((0, 0), (0, 0), (0, capacity - length), (0, 0)))
    return jnp.roll(new[:, :, -capacity:], length % capacity, axis=2)


def append(cached: Array, new: Array, index: Array, rolls: bool) -> tuple[Array, Array]:
    """Store new columns.

    Args:
        cached: (B, H, N, D) the slots.
        new: (B, H, T, D) keys or values of columns `index` to `index + T - 1`.
        index: () number of columns before.
        rolls: the slots are those of a window.

    Returns:
        The new slots, and (B, H, S, D) all that the new queries may see: their columns are `visible_columns`.
    """
    capacity, length = cached.shape[2], new.shape[2]
    if not rolls or length == 1:
        cached = lax.dynamic_update_slice_in_dim(cached, new, index % capacity if rolls else index, axis=2)
        return cached, cached
    seen = jnp.concatenate([cached, new], axis=2)
    in_order = jnp.concatenate([jnp.roll(cached, -(index % capacity), axis=2), new], axis=2)
    return jnp.roll(in_order[:, :, -capacity:], (index + length) % capacity, axis=2), seen


def visible_columns(capacity: int, length: int, index: Array, rolls: bool) -> Array:
    """(S,) columns of what `append` returns for T = `length` new columns; negative where there is nothing."""
    places = jnp.arange(capacity)
    if not rolls:
        return places
    last = index if length == 1 else index - 1  # the newest column in the slots
    held = last - (last - places) % capacity
    return held if length == 1 else jnp.concatenate([held, index + jnp.arange(length)])
