"""Rotary positions (Su et al., 2021) and the ways to stretch them past the length of pretraining."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import Array

from gptrio.config.rotary import SCALINGS, Arrays, RotarySettings
from gptrio.jax.nn.linear import Dtype

RotaryTables = tuple[Array, Array]  # cosines and sines, each (B, 1, T, R / 2)
_arange, _array = (partial(make, dtype=jnp.float32) for make in (jnp.arange, jnp.asarray))


def rotary_tables(settings: RotarySettings, position_ids: Array, dtype: Dtype) -> RotaryTables:
    """Cosines and sines of positions (B, T), computed in float32; each (B, 1, T, R / 2) in `dtype`."""
    frequencies, factor = SCALINGS[settings.kind](settings, position_ids.max() + 1, Arrays(_arange, _array, jnp.where))
    angles = position_ids[:, None, :, None].astype(jnp.float32) * frequencies
    return (jnp.cos(angles) * factor).astype(dtype), (jnp.sin(angles) * factor).astype(dtype)


def rotate(x: Array, tables: RotaryTables) -> Array:
    """Rotate the first R dimensions of each head by the angles of its position; pairs are (i, i + R / 2).

    Args:
        x: (B, H, T, D) queries or keys.
        tables: cosines and sines, each (B, 1, T, R / 2).
    """
    (cos, sin), half = tables, tables[0].shape[-1]
    first, second, rest = jnp.split(x, [half, 2 * half], axis=-1)
    parts = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)
