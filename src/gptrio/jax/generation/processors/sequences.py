"""Processors that look at the tokens of a row: repeated ones, and repeated n-grams."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from gptrio.config.fields import check_number
from gptrio.jax.generation.processors.base import NEG_INF, FlaxLogitsProcessor, compiled_with


@compiled_with("penalty")
class FlaxRepetitionPenaltyLogitsProcessor(FlaxLogitsProcessor):
    """Lower the scores of the tokens that are in a row already, prompt included, once each, however often they occur.

    The Flax classes of Transformers have none. Source: Keskar et al., "CTRL", arXiv:1909.05858.

    Args:
        penalty: above 1 lowers the scores of repeated tokens, below 1 raises them.
    """

    def __init__(self, penalty: float) -> None:
        self.penalty = check_number("repetition_penalty", penalty, float, gt=0)

    def __call__(self, input_ids: Array, scores: Array, cur_len: Array) -> Array:
        """Return scores (B, V) with the tokens of the columns before `cur_len` penalised."""
        rows, columns = jnp.arange(input_ids.shape[0])[:, None], jnp.arange(input_ids.shape[1])
        is_seen = jnp.zeros(scores.shape, bool).at[rows, input_ids].max(columns < cur_len)
        return jnp.where(is_seen, jnp.where(scores < 0, scores * self.penalty, scores / self.penalty), scores)


@compiled_with()
class FlaxNoRepeatNGramLogitsProcessor(FlaxLogitsProcessor):
    """Forbid tokens that would complete an n-gram for the second time in a row of ids, prompt included.

    Args:
        ngram_size: n, at least 1.
    """

    def __init__(self, ngram_size: int) -> None:
        self.ngram_size = check_number("no_repeat_ngram_size", ngram_size, int, ge=1)

    def __call__(self, input_ids: Array, scores: Array, cur_len: Array) -> Array:
        """Return scores (B, V) without the repeating tokens."""
        before, (rows, columns) = self.ngram_size - 1, input_ids.shape
        count = columns - before  # of the n-grams that a row of so many columns can have
        if count <= 0:
            return scores
        ending = lax.dynamic_slice_in_dim(input_ids, cur_len - before, before, axis=1)
        completed = (jnp.arange(count) + before < cur_len)[None]
        for i in range(before):
            completed = completed & (input_ids[:, i : i + count] == ending[:, i, None])
        ceiling = jnp.where(completed & (cur_len >= before), NEG_INF, -NEG_INF).astype(scores.dtype)
        return scores.at[jnp.arange(rows)[:, None], input_ids[:, before:]].min(ceiling)
