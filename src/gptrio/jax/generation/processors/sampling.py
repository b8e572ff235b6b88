"""Processors that shape the distribution to sample from: temperature and the truncations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from gptrio.config.fields import check_number
from gptrio.jax.generation.processors.base import NEG_INF, FlaxLogitsWarper, compiled_with


@compiled_with("temperature")
class FlaxTemperatureLogitsWarper(FlaxLogitsWarper):
    """Divide scores by a temperature: below 1 the likely tokens gain, above 1 the unlikely ones.

    Args:
        temperature: above 0.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = check_number("temperature", temperature, float, gt=0)

    def __call__(self, input_ids: Array, scores: Array, cur_len: Array) -> Array:
        """Return scores (B, V) over the temperature."""
        return scores / self.temperature


@compiled_with("filter_value")
class FlaxTopKLogitsWarper(FlaxLogitsWarper):
    """Keep the k likeliest tokens and those that tie with the last of them.

    Args:
        top_k: how many, at least 1.
        filter_value: score of the removed tokens.
        min_tokens_to_keep: raises `top_k` to at least this.
    """

    def __init__(self, top_k: int, filter_value: float = NEG_INF, min_tokens_to_keep: int = 1) -> None:
        self.top_k = max(check_number("top_k", top_k, int, ge=1), min_tokens_to_keep)
        self.filter_value = filter_value

    def __call__(self, input_ids: Array, scores: Array, cur_len: Array) -> Array:
        """Return scores (B, V), those outside of the k likeliest removed."""
        last = lax.top_k(scores, min(self.top_k, scores.shape[-1]))[0][:, -1:]
        return jnp.where(scores < last, self.filter_value, scores)


@compiled_with("top_p", "filter_value")
class FlaxTopPLogitsWarper(FlaxLogitsWarper):
    """Keep the fewest likeliest tokens whose probabilities reach p.

    Args:
        top_p: from 0 to 1.
        filter_value: score of the removed tokens.
        min_tokens_to_keep: never fewer than these.
    """

    def __init__(self, top_p: float, filter_value: float = NEG_INF, min_tokens_to_keep: int = 1) -> None:
        self.top_p = check_number("top_p", top_p, float, ge=0, le=1)
        self.filter_value = filter_value
        self.min_tokens_to_keep = check_number("min_tokens_to_keep", min_tokens_to_keep, int, ge=1)

    def __call__(self, input_ids: Array, scores: Array, cur_len: Array) -> Array:
        """Return scores (B, V), those of the unlikely tail removed."""
        ordered = jnp.sort(scores, axis=-1, descending=True)
        reached = jax.nn.softmax(ordered, axis=-1).cumsum(-1)
        count = jnp.maximum((reached[:, :-1] < self.top_p).sum(-1) + 1, self.min_tokens_to_keep)
        last = jnp.take_along_axis(ordered, count[:, None] - 1, axis=-1)
        return jnp.where(scores < last, self.filter_value, scores)
