"""Losses of the heads."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jax import Array

IGNORE = -100


def next_token_loss(
    logits: Array, labels: Array, num_items_in_batch: int | Array | None = None, ignore_index: int = IGNORE
) -> Array:
    """Cross-entropy of each token given those before it, in float32.

    A label outside the vocabulary gives NaN; so does a batch without any label that counts, as in PyTorch.

    Args:
        logits: (..., T, V).
        labels: (..., T); position t is predicted by the logits at t - 1. Entries of `ignore_index` do not count.
        num_items_in_batch: divide the sum by this count instead of the number of labels (gradient accumulation).
        ignore_index: the label that does not count.
    """
    labels = labels[..., 1:]
    counts = labels != ignore_index
    known = jnp.where(counts, jnp.where(labels < 0, logits.shape[-1], labels), 0)  # a negative one would count back
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[..., :-1, :].astype(jnp.float32), known)
    return jnp.where(counts, losses, 0).sum() / (counts.sum() if num_items_in_batch is None else num_items_in_batch)
