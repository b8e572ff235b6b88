"""The cache protocol: append and return for a layer, length, reorder, crop, mask geometry.

Shapes: keys and values (B, H, S, D); `S` counts stored positions, `T` those of one call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

LegacyCache = tuple[tuple[Tensor, Tensor], ...]


class CacheLayer(ABC):
    """Keys and values of one layer."""

    is_compileable = False

    @property
    @abstractmethod
    def keys(self) -> Tensor | None:
        """(B, H, S, D), or None before the first update."""

    @property
    @abstractmethod
    def values(self) -> Tensor | None:
        """(B, H, S, D), or None before the first update."""

    @abstractmethod
    def update(self, keys: Tensor, values: Tensor, cache_kwargs: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) and return all keys and values that this call's queries may see."""

    @abstractmethod
    def get_seq_length(self) -> int:
        """Positions seen so far, those that a window has let go included."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys that an update of `query_length` positions returns, and the position of the first of them."""
        return self.get_seq_length() + query_length, 0

    def get_max_cache_shape(self) -> int:
        """Most positions that fit, or -1 if there is no limit."""
        return -1

    @abstractmethod
    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace keys and values by `function` of them, which acts on the batch axis only."""

    @abstractmethod
    def crop(self, max_length: int) -> None:
        """Forget all positions from `max_length` on; a negative number forgets that many from the end."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""


class Cache:
    """A list of layers, made on first use, with the operations of Transformers' `Cache`.

    Args:
        make_layer: layer index to a new layer.
    """

    def __init__(self, make_layer: Callable[[int], CacheLayer]) -> None:
        """Start without layers."""
        self._make_layer = make_layer
        self.layers: list[CacheLayer] = []

    def layer(self, layer_idx: int) -> CacheLayer:
        """The layer at `layer_idx`, made if it is not there yet."""
        while len(self.layers) <= layer_idx:
            self.layers.append(self._make_layer(len(self.layers)))
        return self.layers[layer_idx]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) to a layer and return all keys and values that this call's queries may see.

        Args:
            key_states: (B, H, T, D).
            value_states: (B, H, T, D).
            layer_idx: index of the layer.
            cache_kwargs: `cache_position` (T,) for layers that write in place.
        """
        return self.layer(layer_idx).update(key_states, value_states, cache_kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions seen so far."""
        return self.layers[layer_idx].get_seq_length() if layer_idx < len(self.layers) else 0

    def get_mask_sizes(self, query_length: int | Tensor, layer_idx: int = 0) -> tuple[int, int]:
        """Number of keys that an update returns, and the position of the first of them.

        Args:
            query_length: T, or the call's cache positions (T,).
            layer_idx: index of the layer.
        """
        length = query_length.shape[0] if isinstance(query_length, Tensor) else query_length
        return self.layer(layer_idx).get_mask_sizes(length)

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Most positions that fit, or -1 if there is no limit."""
        return self.layer(layer_idx).get_max_cache_shape()

    @property
    def max_cache_len(self) -> int:
        """Most positions that fit in the roomiest layer, or -1 if there is no limit."""
        return max((layer.get_max_cache_shape() for layer in self.layers), default=-1)

    @property
    def is_compileable(self) -> bool:
        """True if a compiled graph may hold this cache."""
        return bool(self.layers) and all(layer.is_compileable for layer in self.layers)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace row `i` by row `beam_idx[i]` (B,)."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices` (n,), in that order."""
        self._map_batch(lambda states: states.index_select(0, indices.to(states.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times, copies side by side."""
        self._map_batch(lambda states: states.repeat_interleave(repeats, dim=0))

    def _map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        for layer in self.layers:
            layer.map_batch(function)

    def crop(self, max_length: int) -> None:
        """Forget all positions from `max_length` on; a negative number forgets that many from the end."""
        for layer in self.layers:
            layer.crop(max_length)

    def reset(self) -> None:
        """Forget everything, keeping the layers."""
        for layer in self.layers:
            layer.reset()

    def to_legacy_cache(self) -> LegacyCache:
        """A tuple of (keys, values) for each layer, each (B, H, S, D)."""
        return tuple(self[i] for i in range(len(self)))

    def __getitem__(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """(keys, values) of a layer, each (B, H, S, D).

        Raises:
            IndexError: there is no such layer, or it is empty.
        """
        layer = self.layers[layer_idx]
        if layer.keys is None or layer.values is None:
            raise IndexError(f"layer {layer_idx} of the cache is empty")
        return layer.keys, layer.values

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(keys, values) of each layer."""
        return (self[i] for i in range(len(self)))

    def __len__(self) -> int:
        """Number of layers that hold something."""
        return sum(layer.keys is not None for layer in self.layers)

    def __repr__(self) -> str:
        """Class, layers and length."""
        return f"{type(self).__name__}({len(self)} layers, {self.get_seq_length()} positions)"


def as_positions(max_length: int, length: int) -> int:
    """How many of `length` positions `crop(max_length)` keeps."""
    return min(max_length, length) if max_length >= 0 else max(length + max_length, 0)
