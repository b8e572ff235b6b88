"""A cache of Transformers behind this package's protocol: a call appends to the caller's own object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from gptrio.cache.dynamic import DynamicCache
from gptrio.cache.encoder_decoder import EncoderDecoderCache
from gptrio.cache.protocol import Cache, CacheLayer, check_capacity
from gptrio.config.base import PretrainedConfig
from gptrio.errors import InputError, UnsupportedError
from gptrio.foreign import CACHE, CROSS_CACHE, is_foreign

Given = TypeVar("Given")


class TransformersLayer(CacheLayer):
    """One layer of a cache of Transformers.

    Args:
        original: the cache.
        index: index of the layer, which may not exist yet.
    """

    def __init__(self, original: Any, index: int) -> None:
        self.original = original
        self.index = index

    @property
    def keys(self) -> Tensor | None:
        """(B, H, S, D) of the stored positions, or None."""
        return self._states("keys")

    @property
    def values(self) -> Tensor | None:
        """(B, H, S, D) of the stored positions, or None."""
        return self._states("values")

    def _states(self, name: str) -> Tensor | None:
        length = self.get_seq_length()
        if not length:
            return None
        states: Tensor = getattr(self._plain_layer("read one by one"), name)
        return states[:, :, :length]

    def _plain_layer(self, what: str) -> Any:
        """Return the layer; raise UnsupportedError if it stores its states quantized."""
        layer = self.original.layers[self.index]
        if hasattr(layer, "_quantized_keys"):
            raise UnsupportedError(
                f"the states of Transformers' {type(layer).__name__} cannot be {what}; pass gptrio.QuantizedCache"
            )
        return layer

    def update(self, keys: Tensor, values: Tensor, cache_kwargs: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) to the original; at `cache_position` (T,), in a graph, which returns the whole buffer."""
        if cache_kwargs is not None and cache_kwargs.get("cache_position") is not None:
            states: tuple[Tensor, Tensor] = self.original.update(keys, values, self.index, cache_kwargs)
            return states
        past = self.get_seq_length()
        end = past + keys.shape[2]
        capacity = self.get_max_cache_shape()
        if capacity >= 0:
            check_capacity(end, capacity)
        positions = torch.arange(past, end, device=keys.device)
        keys, values = self.original.update(keys, values, self.index, {"cache_position": positions})
        return keys[:, :, :end], values[:, :, :end]  # a static layer returns its whole buffer

    def get_seq_length(self) -> int:
        """Number of positions appended so far."""
        return int(self.original.get_seq_length(self.index))

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Number of keys that an update returns, and the position of the first of them."""
        if isinstance(query_length, Tensor):
            return self.get_max_cache_shape(), 0
        return self.get_seq_length() + query_length, 0

    def next_positions(self, length: int, device: torch.device) -> Tensor:
        """(length,) the next positions, of a length that may be a tensor."""
        past: int | Tensor = self.original.get_seq_length(self.index)
        return torch.arange(length, device=device) + past

    def get_max_cache_shape(self) -> int:
        """Capacity in positions, or -1 if there is no limit."""
        layers = self.original.layers
        capacity = layers[self.index].get_max_cache_shape() if self.index < len(layers) else -1
        return -1 if capacity is None else int(capacity)

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace the keys and values of all slots by `function` of them."""
        if self.get_seq_length():
            layer = self._plain_layer("reordered")
            layer.keys, layer.values = function(layer.keys), function(layer.values)

    def crop(self, max_length: int) -> None:
        """Remove all positions from `max_length` on; a negative number removes that many from the end."""
        if not self.get_seq_length():
            return
        layer = self._plain_layer("cropped")
        if hasattr(layer, "crop"):
            layer.crop(max_length)
            return
        for states in (layer.keys, layer.values):  # a static layer's length is its number of slots that are not zero
            states[:, :, max_length if max_length >= 0 else self.get_seq_length() + max_length :] = 0

    def reset(self) -> None:
        """Remove all positions."""
        self.crop(0)  # the reset of Transformers' dynamic layer leaves zeros of the old length


class TransformersCache(Cache):
    """A view on a cache of Transformers, which remains the caller's object.

    Args:
        original: a cache of Transformers without sliding windows.

    Raises:
        UnsupportedError: a layer has a sliding window.
    """

    def __init__(self, original: Any) -> None:
        if any(original.is_sliding):
            raise UnsupportedError(
                f"Transformers' {type(original).__name__} has a sliding window, which gptrio does not read; pass "
                "gptrio.DynamicCache(config=model.config), which has GPT-Neo's windows"
            )
        self.original = original
        super().__init__([TransformersLayer(original, i) for i in range(len(original.layers))], self._next_layer)

    @property
    def is_compileable(self) -> bool:
        """Whether a graph is made now of a static cache, whose length is a tensor there."""
        return torch.compiler.is_compiling() and bool(self.original.is_compileable)

    def _next_layer(self) -> TransformersLayer:
        return TransformersLayer(self.original, len(self.layers))


class TransformersCrossCache(EncoderDecoderCache):
    """A view on the cache of a decoder with cross-attention, which remains the caller's object.

    Args:
        original: an `EncoderDecoderCache` of Transformers.
    """

    def __init__(self, original: Any) -> None:
        own, cross = original.self_attention_cache, original.cross_attention_cache
        super().__init__(TransformersCache(own), TransformersCache(cross))
        self.original = original
        self.is_updated = original.is_updated


def as_own_cache(given: Given) -> Given | Cache:
    """Return a view on a cache of Transformers, and any other object unchanged."""
    if given is None or isinstance(given, Cache):
        return given
    if is_foreign(given, CROSS_CACHE):
        return TransformersCrossCache(given)
    has_layers = hasattr(given, "layers")  # caches before release 4.54 have none
    return TransformersCache(given) if has_layers and is_foreign(given, CACHE) else given


def cache_of(past_key_values: Any, config: PretrainedConfig | None = None) -> Cache | None:
    """Return a cache of this library or Transformers, or a tuple of (keys, values) per layer, as our cache; or None.

    `config` has the windows of the layers of a tuple. Anything else raises InputError.
    """
    if isinstance(past_key_values, (tuple, list)):
        if any(len(layer) > 2 for layer in past_key_values):
            return EncoderDecoderCache.from_legacy_cache(past_key_values)
        return DynamicCache.from_legacy_cache(tuple(past_key_values), config)
    cache = as_own_cache(past_key_values)
    if cache is None or isinstance(cache, Cache):
        return cache
    raise InputError(
        f"past_key_values is a {type(cache).__name__}; expected a Cache, or a tuple of (keys, values) per layer"
    )


def as_given(cache: Any) -> Any:
    """Return the cache of Transformers that a view shows, and any other object unchanged."""
    return cache.original if isinstance(cache, (TransformersCache, TransformersCrossCache)) else cache
