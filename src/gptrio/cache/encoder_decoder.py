"""The cache of a decoder with cross-attention: its own past, and keys and values of the encoder, computed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from gptrio.cache.dynamic import DynamicCache
from gptrio.cache.protocol import Cache, CacheLayer

LegacyCrossCache = tuple[tuple[Tensor, ...], ...]


class EncoderDecoderCache(Cache):
    """Two caches: every call appends to `self_attention_cache`; the first call fills `cross_attention_cache`.

    Args:
        self_attention_cache: the decoder's past; or (keys, values, cross keys, cross values) of each layer, for both.
        cross_attention_cache: keys and values of the encoder's states; empty if None.
    """

    cross_attention_cache: Cache

    def __init__(
        self, self_attention_cache: Cache | Iterable[tuple[Tensor, ...]], cross_attention_cache: Cache | None = None
    ) -> None:
        """Use two caches; layers that are not empty in the second are not computed again."""
        if not isinstance(self_attention_cache, Cache):
            held = list(self_attention_cache)
            self_attention_cache = DynamicCache((layer[0], layer[1]) for layer in held)
            cross_attention_cache = DynamicCache((layer[2], layer[3]) for layer in held if len(layer) > 2)
        cross = DynamicCache() if cross_attention_cache is None else cross_attention_cache
        self.self_attention_cache = self_attention_cache
        self.cross_attention_cache = cross
        self.is_updated = {i: cross.get_seq_length(i) > 0 for i in range(len(cross))}

    @classmethod
    def from_legacy_cache(cls, past_key_values: Iterable[tuple[Tensor, ...]] | None = None) -> EncoderDecoderCache:
        """From a tuple of (keys, values, cross keys, cross values) for each layer, each (B, H, S, D)."""
        return cls(past_key_values or ())

    @property
    def layers(self) -> list[Any]:  # type: ignore[override]  # a view on the decoder's layers
        """Layers of the decoder's past, of which lengths, sizes and positions are those of this cache."""
        return self.self_attention_cache.layers

    def layer(self, layer_idx: int) -> CacheLayer:
        """Return a layer of the decoder's past; make it if it does not exist yet."""
        return self.self_attention_cache.layer(layer_idx)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append to the decoder's past."""
        return self.self_attention_cache.update(key_states, value_states, layer_idx, cache_kwargs)

    @property
    def max_cache_len(self) -> int:
        """Capacity of the decoder's past."""
        return self.self_attention_cache.max_cache_len

    def batch_select_indices(self, indices: Tensor | Sequence[int]) -> None:
        """Keep the rows `indices` (n,) of both caches."""
        self.self_attention_cache.batch_select_indices(indices)
        self.cross_attention_cache.batch_select_indices(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of both caches."""
        self.self_attention_cache.batch_repeat_interleave(repeats)
        self.cross_attention_cache.batch_repeat_interleave(repeats)

    def move_positions(self, order: Tensor, is_real: Tensor) -> None:
        """Permute the positions of the decoder's past."""
        self.self_attention_cache.move_positions(order, is_real)
        self.real_positions_last = True

    def reset(self) -> None:
        """Remove all positions of both caches."""
        self.real_positions_last = False
        self.self_attention_cache.reset()
        self.cross_attention_cache.reset()
        self.is_updated = dict.fromkeys(self.is_updated, False)

    def to_legacy_cache(self) -> LegacyCrossCache:  # type: ignore[override]  # four tensors a layer
        """A tuple of (keys, values, cross keys, cross values) for each layer."""
        cross = self.cross_attention_cache
        return tuple(own + (cross[i] if i < len(cross) else ()) for i, own in enumerate(self.self_attention_cache))

    def __getitem__(self, layer_idx: int) -> tuple[Tensor, ...]:  # type: ignore[override]  # four tensors a layer
        return self.self_attention_cache[layer_idx] + self.cross_attention_cache[layer_idx]

    def __len__(self) -> int:
        return len(self.self_attention_cache)
