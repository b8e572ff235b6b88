"""A cache of Transformers behind this package's protocol: what a call appends goes into the caller's own object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from gptrio.cache.encoder_decoder import EncoderDecoderCache
from gptrio.cache.protocol import Cache, CacheLayer, check_room, count_of
from gptrio.errors import UnsupportedError
from gptrio.foreign import CACHE, CROSS_CACHE, is_foreign

Given = TypeVar("Given")


class TransformersLayer(CacheLayer):
    """One layer of a cache of Transformers.

    Args:
        original: the cache.
        index: of the layer, which need not be there yet.
    """

    def __init__(self, original: Any, index: int) -> None:
        """Look at one layer."""
        self.original = original
        self.index = index

    @property
    def keys(self) -> Tensor | None:
        """(B, H, S, D) of the positions that are there, or None."""
        return self._states("keys")

    @property
    def values(self) -> Tensor | None:
        """(B, H, S, D) of the positions that are there, or None."""
        return self._states("values")

    def _states(self, name: str) -> Tensor | None:
        length = self.get_seq_length()
        if not length:
            return None
        states: Tensor = getattr(self._plain_layer("read one by one"), name)
        return states[:, :, :length]

    def _plain_layer(self, what: str) -> Any:
        """The layer itself, unless it keeps its states in another form."""
        layer = self.original.layers[self.index]
        if hasattr(layer, "_quantized_keys"):
            raise UnsupportedError(
                f"the states of Transformers' {type(layer).__name__} cannot be {what}; pass gptrio.QuantizedCache"
            )
        return layer

    def update(self, keys: Tensor, values: Tensor, cache_kwargs: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) to the original, after what it holds."""
        past = self.get_seq_length()
        end = past + keys.shape[2]
        room = self.get_max_cache_shape()
        if room >= 0:
            check_room(end, room)
        positions = torch.arange(past, end, device=keys.device)
        keys, values = self.original.update(keys, values, self.index, {"cache_position": positions})
        return keys[:, :, :end], values[:, :, :end]  # a static layer returns its whole buffer

    def get_seq_length(self) -> int:
        """Positions seen so far."""
        return int(self.original.get_seq_length(self.index))

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Number of keys that an update returns, and the position of the first of them."""
        return self.get_seq_length() + count_of(query_length), 0

    def get_max_cache_shape(self) -> int:
        """Most positions that fit, or -1 if there is no limit."""
        layers = self.original.layers
        most = layers[self.index].get_max_cache_shape() if self.index < len(layers) else -1
        return -1 if most is None else int(most)

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace keys and values, of all slots, by `function` of them."""
        if self.get_seq_length():
            layer = self._plain_layer("reordered")
            layer.keys, layer.values = function(layer.keys), function(layer.values)

    def crop(self, max_length: int) -> None:
        """Forget all positions from `max_length` on; a negative number forgets that many from the end."""
        if not self.get_seq_length():
            return
        layer = self._plain_layer("cropped")
        if hasattr(layer, "crop"):
            layer.crop(max_length)
            return
        for states in (layer.keys, layer.values):  # a static layer counts the slots that are not zero
            states[:, :, max_length if max_length >= 0 else self.get_seq_length() + max_length :] = 0

    def reset(self) -> None:
        """Forget everything."""
        self.crop(0)  # the original's own reset of a dynamic layer keeps zeros of the old length


class TransformersCache(Cache):
    """A cache of Transformers, which goes on being the caller's.

    Args:
        original: a cache of Transformers without sliding windows.

    Raises:
        UnsupportedError: it keeps windows.
    """

    def __init__(self, original: Any) -> None:
        """Look at a cache."""
        if any(original.is_sliding):
            raise UnsupportedError(
                f"Transformers' {type(original).__name__} keeps a sliding window, whose geometry is its own; pass "
                "gptrio.DynamicCache(config=model.config), which keeps GPT-Neo's windows"
            )
        self.original = original
        super().__init__([TransformersLayer(original, i) for i in range(len(original.layers))], self._next_layer)

    def _next_layer(self) -> TransformersLayer:
        return TransformersLayer(self.original, len(self.layers))


class TransformersCrossCache(EncoderDecoderCache):
    """The cache of a decoder with cross-attention, which goes on being the caller's.

    Args:
        original: an `EncoderDecoderCache` of Transformers.
    """

    def __init__(self, original: Any) -> None:
        """Look at both caches."""
        own, cross = original.self_attention_cache, original.cross_attention_cache
        super().__init__(TransformersCache(own), TransformersCache(cross))
        self.original = original
        self.is_updated = original.is_updated


def as_own_cache(given: Given) -> Given | Cache:
    """A cache of Transformers behind our protocol; everything else as it is."""
    if given is None or isinstance(given, Cache):
        return given
    if is_foreign(given, CROSS_CACHE):
        return TransformersCrossCache(given)
    has_layers = hasattr(given, "layers")  # those before 4.54 have none
    return TransformersCache(given) if has_layers and is_foreign(given, CACHE) else given


def as_given(cache: Any) -> Any:
    """What the caller passed in: the cache of Transformers behind ours; everything else as it is."""
    return cache.original if isinstance(cache, (TransformersCache, TransformersCrossCache)) else cache
