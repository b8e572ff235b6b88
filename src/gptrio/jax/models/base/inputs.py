"""What a call passes to the module: arrays of the right shapes, with every id inside its table.

Values are checked where they are known. Under `jit` they are not: there an id or position outside its table gives NaN.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax import Array

from gptrio.config import PretrainedConfig
from gptrio.errors import InputError, TokenIdError, warn


def as_ids(values: Any, array_module: ModuleType = jnp) -> Any:
    """(B, T) int32 of integers, of JAX or of numpy; raises InputError for another shape."""
    array = array_module.asarray(values)
    if array.ndim != 2 or not array.shape[1]:
        raise InputError(f"input_ids has shape {array.shape}; expected (batch, at least one token)")
    return array.astype(np.int32)


def check_ids(ids: Any, config: PretrainedConfig) -> None:
    """Raise TokenIdError for ids outside the vocabulary."""
    size = config.vocab_size
    values = known(ids)
    outside = values[(values < 0) | (values >= size)]
    if outside.size:
        raise TokenIdError(f"token id {outside[0]} is outside the vocabulary of {size} tokens (0 to {size - 1})")


def check_positions(positions: Any, ids: Array, config: PretrainedConfig) -> None:
    """Raise InputError for another shape than that of the ids, TokenIdError for a position beyond the longest."""
    if positions.shape[-1] != ids.shape[1] or positions.shape[0] not in (1, ids.shape[0]):
        raise InputError(f"position_ids have shape {positions.shape}; input_ids have {ids.shape}")
    longest = config.max_position_embeddings
    last = known(positions).max(initial=0)
    if last >= longest and not hasattr(config, "rotary_pct"):  # rotations have no table that ends
        raise TokenIdError(f"position {last} is beyond max_position_embeddings={longest}")


def check_mask(mask: Array, ids: Array, cache: dict[str, Any] | None) -> None:
    """Raise InputError for a mask that does not cover the tokens: (B, T), or with a cache (B, past + T or more)."""
    rows, length = ids.shape
    fits = mask.ndim == 2 and mask.shape[0] == rows and (mask.shape[1] >= length if cache else mask.shape[1] == length)
    if not fits:
        covered = "past and new tokens" if cache else f"{length} tokens"
        raise InputError(f"attention_mask has shape {mask.shape}; expected ({rows} rows, {covered})")


def check_cache(cache: dict[str, Any], ids: Array, windows: list[int | None]) -> None:
    """Raise InputError where a cache is another batch's, or has no room for the new tokens."""
    held = flatten_dict(cache)
    layers = {path[:-1]: value.shape for path, value in held.items() if path[-1] == "cached_key"}
    index = next((value for path, value in held.items() if path[-1] == "cache_index"), 0)
    if not layers or len(layers) != len(windows):
        raise InputError(
            f"past_key_values hold {len(layers)} layers, the model has {len(windows)}; pass what init_cache or the "
            "model returned"
        )
    rows = {shape[0] for shape in layers.values()}
    if rows != {ids.shape[0]}:
        raise InputError(f"past_key_values are of {max(rows)} rows, input_ids of {ids.shape[0]}")
    room = max(shape[2] for shape in layers.values())
    is_endless = all(window is not None and window <= room for window in windows)  # every layer overwrites its slots
    end = int(known(index).max(initial=0)) + ids.shape[1]
    if end > room and not is_endless:
        raise InputError(f"past_key_values have room for {room} tokens, not for {end}; init_cache a longer one")


def warn_of_left_padding(mask: Any, position_ids: Any) -> None:
    """Say that positions count left padding, unless they were given."""
    if position_ids is None and mask is not None and (known(mask)[:, :1] == 0).any():
        warn(
            "the batch is padded on the left, and position_ids were not given, so positions count the padding and the "
            "numbers differ from those of each row alone; pass position_ids=(attention_mask.cumsum(-1) - 1).clip(0), "
            "or use generate(), which does"
        )


def known(array: Any) -> np.ndarray[Any, Any]:
    """The values of an array; none of them, in as many axes, where the call is traced."""
    return np.empty((0,) * max(array.ndim, 1), np.int32) if isinstance(array, jax.core.Tracer) else np.asarray(array)
