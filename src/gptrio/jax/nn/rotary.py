"""Rotary positions (Su et al., 2021) and the ways to stretch them past the length of pretraining."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from gptrio.config.rotary import RotarySettings, longrope_attention, yarn_attention, yarn_ramp
from gptrio.jax.nn.linear import Dtype

RotaryTables = tuple[Array, Array]  # cosines and sines, each (B, 1, T, R / 2)
Frequencies = tuple[Array, float]  # inverse frequencies (R / 2,) in float32, and the factor of the tables


def _powers(settings: RotarySettings) -> Array:
    """(R / 2,) exponents of the base."""
    return jnp.arange(0, settings.width, 2, dtype=jnp.float32) / settings.width


def _default(settings: RotarySettings, length: Array) -> Frequencies:
    return 1.0 / settings.base ** _powers(settings), 1.0


def _linear(settings: RotarySettings, length: Array) -> Frequencies:
    """Positions divided by a factor (Chen et al., 2023)."""
    frequencies, _ = _default(settings, length)
    return frequencies / settings.scaling["factor"], 1.0


def _dynamic(settings: RotarySettings, length: Array) -> Frequencies:
    """A base that grows with the length beyond that of pretraining (NTK-aware scaling)."""
    factor, trained, width = settings.scaling["factor"], settings.max_length, settings.width
    plain, _ = _default(settings, length)
    growth = factor * jnp.maximum(length, trained).astype(jnp.float32) / trained - (factor - 1)
    stretched = 1.0 / (settings.base * growth ** (width / (width - 2))) ** _powers(settings)
    return jnp.where(length > trained, stretched, plain), 1.0


def _yarn(settings: RotarySettings, length: Array) -> Frequencies:
    """Slow frequencies divided by a factor, fast ones kept, a ramp between (YaRN; Peng et al., 2023)."""
    low, high = yarn_ramp(settings)
    pairs = jnp.arange(settings.width // 2, dtype=jnp.float32)
    kept = 1 - jnp.clip((pairs - low) / ((high - low) or 0.001), 0, 1)
    plain, _ = _default(settings, length)
    return plain / settings.scaling["factor"] * (1 - kept) + plain * kept, yarn_attention(settings.scaling)


def _longrope(settings: RotarySettings, length: Array) -> Frequencies:
    """One searched factor for every frequency, others for long sequences (LongRoPE; Ding et al., 2024)."""
    trained = settings.original_length or settings.max_length
    short, long = (jnp.asarray(settings.scaling[name], jnp.float32) for name in ("short_factor", "long_factor"))
    plain, _ = _default(settings, length)
    return plain / jnp.where(length > trained, long, short), longrope_attention(settings)


def _llama3(settings: RotarySettings, length: Array) -> Frequencies:
    """Long waves divided by a factor, short ones kept, the middle blended (Llama 3.1; Dubey et al., 2024)."""
    scaling = settings.scaling
    factor, slow, fast = (scaling[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    trained = scaling["original_max_position_embeddings"]
    frequencies, _ = _default(settings, length)
    waves = 2 * math.pi / frequencies
    kept = (trained / waves - slow) / (fast - slow)
    blended = (1 - kept) * frequencies / factor + kept * frequencies
    long_or_middle = jnp.where(waves > trained / slow, frequencies / factor, blended)
    return jnp.where(waves < trained / fast, frequencies, long_or_middle), 1.0


SCALINGS: dict[str, Callable[[RotarySettings, Array], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}


def rotary_tables(settings: RotarySettings, position_ids: Array, dtype: Dtype) -> RotaryTables:
    """Cosines and sines of positions (B, T), computed in float32; each (B, 1, T, R / 2) in `dtype`."""
    frequencies, factor = SCALINGS[settings.kind](settings, position_ids.max() + 1)
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
