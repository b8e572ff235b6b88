"""How a model is run inside of compiled loops."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

Cache = Any  # nested dictionaries, see `gptrio.jax.nn.blocks.MultiHeadAttention`


class Model:
    """A module as an argument of `jit`: equal to itself only, so that no configuration is compared."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and self.module is other.module

    def __hash__(self) -> int:
        return id(self.module)


def prefill(model: Model, params: Any, ids: Array, mask: Array) -> tuple[Array, Cache, Array]:
    """Read prompts.

    Args:
        model: the module.
        params: of the model.
        ids: (B, P) with padding on the left.
        mask: (B, N) True for real tokens; the cache gets so many columns.

    Returns:
        Logits (B, V) of the next tokens in float32, the cache, and the positions (B, 1) of the last ones.
    """
    positions = mask[:, : ids.shape[1]].cumsum(-1) - 1
    output, changed = model.module.apply(
        {"params": params}, ids, mask, positions, init_cache=mask.shape[1], logits_to_keep=1, mutable=["cache"]
    )
    return output.logits[:, -1].astype(jnp.float32), changed["cache"], positions[:, -1:]


def step(model: Model, params: Any, tokens: Array, mask: Array, positions: Array, cache: Cache) -> tuple[Array, Cache]:
    """Read one more token (B, 1) of each row; return logits (B, V) in float32, and the cache."""
    output, changed = model.module.apply({"params": params, "cache": cache}, tokens, mask, positions, mutable=["cache"])
    return output.logits[:, -1].astype(jnp.float32), changed["cache"]
