"""Caches of a fixed size, written in place, so that a step is compiled only once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gptrio.cache.offloaded import OffloadedLayer, Transfers
from gptrio.cache.protocol import CROP_MARGIN, Cache, windows_of
from gptrio.cache.static_layers import SlidingWindowLayer, StaticLayer
from gptrio.config.base import PretrainedConfig
from gptrio.errors import InputError


class StaticCache(Cache):
    """A cache of `max_cache_len` positions, written in place, so that a step is compiled only once.

    Compiled steps need `cache_position` (T,); an attention mask has `max_cache_len` columns.

    Args:
        config: the model's configuration.
        max_cache_len: capacity in positions.
        offloading: store keys and values in host memory; compiled steps do not support such a cache.
        offload_only_non_sliding: with `offloading`, store sliding-window layers on the device.
        max_batch_size: rows; with `device` and `dtype`, the buffers are made at once rather than by the first update.
        device: device of the buffers.
        dtype: dtype of keys and values.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        max_cache_len: int,
        offloading: bool = False,
        offload_only_non_sliding: bool = True,
        *,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if max_cache_len < 1:
            raise InputError(f"max_cache_len={max_cache_len} is not possible; expected the most positions, 1 or more")
        transfers = Transfers()
        layers: list[StaticLayer | OffloadedLayer] = []
        for window in windows_of(config):
            if offloading and (window is None or not offload_only_non_sliding):
                layers.append(OffloadedLayer(transfers, window, max_cache_len))
            else:
                layers.append(_fixed_layer(max_cache_len, window))
        super().__init__(layers)
        self._max_cache_len = max_cache_len
        if max_batch_size is not None and device is not None and dtype is not None:
            heads = config.num_attention_heads
            self.early_initialization(max_batch_size, heads, config.hidden_size // heads, dtype, device)

    @property
    def max_cache_len(self) -> int:
        """Capacity in positions."""
        return self._max_cache_len

    def early_initialization(
        self, batch_size: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        """Make the buffers of all layers, (batch_size, num_heads, max_cache_len, head_dim) each."""
        like = torch.empty(batch_size, num_heads, 0, head_dim, dtype=dtype, device=device)
        for layer in self.layers:
            assert isinstance(layer, StaticLayer | OffloadedLayer)
            layer.lazy_initialization(like)

    def set_seq_length(self, length: int) -> None:
        """Record the length that a replayed CUDA graph has already written on the device."""
        for layer in self.layers:
            assert isinstance(layer, StaticLayer)
            layer.sync_seq_length(length)

    def __len__(self) -> int:
        """Number of layers, empty ones included."""
        return len(self.layers)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(keys, values) of each layer that has a buffer."""
        return (
            (keys, values)
            for layer in self.layers
            if (keys := layer.keys) is not None and (values := layer.values) is not None
        )


class OffloadedStaticCache(StaticCache):
    """`StaticCache(offloading=True)`; its arguments are those of `StaticCache`."""

    def __init__(self, config: PretrainedConfig, max_cache_len: int, **options: Any) -> None:
        super().__init__(config, max_cache_len, offloading=True, **options)


def _fixed_layer(max_cache_len: int, window: int | None) -> StaticLayer:
    """A ring buffer if it is smaller than the whole past, else a plain layer."""
    if window is None or max_cache_len <= window + CROP_MARGIN:
        return StaticLayer(max_cache_len)
    return SlidingWindowLayer(max_cache_len, window)
