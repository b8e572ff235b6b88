"""Caches without a fixed size: layers that store the whole past, or the last positions of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gptrio.cache.offloaded import OffloadedLayer, Transfers
from gptrio.cache.protocol import (
    CROP_MARGIN,
    Cache,
    CacheLayer,
    LegacyCache,
    check_fit,
    concat,
    cropped_length,
    num_queries,
    windows_of,
)
from gptrio.config.base import PretrainedConfig
from gptrio.errors import InputError
from gptrio.kernels import guards


class DynamicLayer(CacheLayer):
    """The whole past of one layer, in buffers with spare capacity.

    An update writes into the spare capacity, so that its cost does not grow with the length. While autograd records,
    nothing is written in place: past and new positions are concatenated. A tensor that the caller may hold, because it
    was set or returned, is never changed.
    """

    def __init__(self) -> None:
        self._keys: Tensor | None = None  # (B, H, capacity, D)
        self._values: Tensor | None = None
        self._stored = 0  # filled positions of the buffers
        self._owns_buffer = False  # whether free positions may be written
        self._shared_out = False  # whether the caller may hold views of filled positions

    @property
    def keys(self) -> Tensor | None:
        """(B, H, S, D), or None before the first update."""
        self._shared_out = True
        return None if self._keys is None else self._filled(self._keys)

    @keys.setter
    def keys(self, keys: Tensor | None) -> None:
        """Replace the keys by (B, H, S, D), which sets the length to S; values of the same length must be set too."""
        self._keys = self._adopt(keys)

    @property
    def values(self) -> Tensor | None:
        """(B, H, S, D), or None before the first update."""
        self._shared_out = True
        return None if self._values is None else self._filled(self._values)

    @values.setter
    def values(self, values: Tensor | None) -> None:
        """Replace the values by (B, H, S, D), which sets the length to S; keys of the same length must be set too."""
        self._values = self._adopt(values)

    def _filled(self, buffer: Tensor) -> Tensor:
        """The stored positions; a buffer without spare capacity itself, so that it can be told by its identity."""
        return buffer if buffer.shape[-2] == self._stored else buffer[:, :, : self._stored]

    def _adopt(self, states: Tensor | None) -> Tensor | None:
        """Set length and ownership for states of the caller, whose tensor is never written; return what to store."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys[:, :, : self._stored], self._values[:, :, : self._stored]
        self._owns_buffer = False
        if states is None or states.numel() == 0:
            self._set_count(0)
            return None
        self._set_count(states.shape[-2])
        return states

    def _set_count(self, count: int) -> None:
        """Set the number of stored positions."""
        self._stored = count

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of keys and values, or None before the first update."""
        return None if self._keys is None else self._keys.dtype

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, capacity, D), spare capacity included; the layer must not be empty."""
        assert self._keys is not None and self._values is not None
        return self._keys, self._values

    def set_states(self, keys: Tensor, values: Tensor) -> None:
        """Store given keys and values (B, H, S, D), which are copied when the next positions are written."""
        self._keys, self._values, self._stored, self._owns_buffer = keys, values, keys.shape[-2], False

    def update(self, keys: Tensor, values: Tensor, cache_kwargs: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) and return the whole past."""
        check_fit(self._keys, keys)
        return self._append(keys, values)

    def can_reserve(self, rows: int, heads: int, width: int, dtype: torch.dtype) -> bool:
        """Whether keys and values are dense, in the CPU's memory, of a dtype and of shape (rows, heads, S, width)."""
        keys, values = self._keys, self._values
        if type(keys) is not Tensor or type(values) is not Tensor:  # none, or of a class that may have no memory
            return False
        if keys.dim() != 4 or type(self) not in _RESERVABLE:
            return False
        shape = keys.shape
        alike = values.shape == shape and keys.dtype is dtype and values.dtype is dtype
        dense = keys.is_cpu and values.is_cpu and keys.layout is values.layout is torch.strided
        return alike and dense and shape[0] == rows and shape[1] == heads and shape[3] == width

    def is_unchanged(self, keys: Tensor, values: Tensor, length: int) -> bool:
        """Whether the layer still has the buffers that `reserve` returned, and this length."""
        return self._keys is keys and self._values is values and self.get_seq_length() == length

    def reserve(self, guarded: bool = False) -> tuple[Tensor, Tensor, int]:
        """Extend the layer by one position, which the caller writes, without autograd.

        Args:
            guarded: put guard words around the buffers.

        Returns:
            The contiguous buffers (B, H, capacity, D) of keys and values, and the slot of the new position in them.
        """
        keys, values = self.buffers
        if not guarded and self._has_capacity(self._stored + 1) and keys.is_contiguous() and values.is_contiguous():
            self._stored += 1
            return keys, values, self._stored - 1
        if not (keys.is_contiguous() and values.is_contiguous()):
            self._owns_buffer = False
        if guarded and not (guards.is_guarded(keys) and guards.is_guarded(values)):
            self._owns_buffer = False
        slot = self._extend(keys, values, 1, self._count_to_drop(1))
        return *self.buffers, slot

    def _count_to_drop(self, count: int) -> int:
        """Number of oldest positions to drop when `count` are appended."""
        return 0

    def _append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append, and return all stored positions."""
        drop = self._count_to_drop(keys.shape[-2])
        if torch.is_grad_enabled():
            self.set_states(self._concat_past(self._keys, keys, drop), self._concat_past(self._values, values, drop))
            return self.buffers
        start = self._extend(keys, values, keys.shape[-2], drop)
        all_keys, all_values = (buffer[:, :, : self._stored] for buffer in self.buffers)
        all_keys[:, :, start:], all_values[:, :, start:] = keys, values
        return all_keys, all_values

    def _extend(self, keys: Tensor, values: Tensor, count: int, drop: int) -> int:
        """Drop the oldest positions, extend by `count`, like keys and values; return the slot of the first new one."""
        start = self._stored - drop
        if drop or not self._has_capacity(start + count):
            self._keys = self._grown(self._keys, keys, drop, start + count)
            self._values = self._grown(self._values, values, drop, start + count)
            self._owns_buffer, self._shared_out = True, False
        self._stored = start + count
        return start

    def _concat_past(self, past: Tensor | None, new: Tensor, drop: int) -> Tensor:
        return concat(None if past is None else past[:, :, drop : self._stored], new)

    def _has_capacity(self, end: int) -> bool:
        buffer = self._keys
        if buffer is None or not self._owns_buffer or buffer.shape[-2] < end:
            return False
        # outside of inference mode torch cannot write to an inference tensor
        return torch.is_inference_mode_enabled() or not buffer.is_inference()

    def _grown(self, buffer: Tensor | None, new: Tensor, drop: int, end: int) -> Tensor:
        shape = (*new.shape[:-2], end + max(64, end // 4), new.shape[-1])
        guarded = new.is_cpu and guards.are_on()
        larger = guards.guarded_empty(shape, new.dtype) if guarded else new.new_empty(shape)
        if buffer is not None:
            larger[:, :, : self._stored - drop] = buffer[:, :, drop : self._stored]
        return larger

    def get_seq_length(self) -> int:
        """Number of positions stored."""
        return self._stored

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace keys and values, with their spare capacity, by `function` of them."""
        if self._keys is not None and self._values is not None:
            end = self._keys.shape[-2] if self._owns_buffer else self._stored
            self._keys, self._values = function(self._keys[:, :, :end]), function(self._values[:, :, :end])
            self._shared_out = False

    def crop(self, max_length: int) -> None:
        """Remove all positions from `max_length` on; a negative number removes that many from the end."""
        self._truncate(cropped_length(max_length, self._stored))

    def _truncate(self, stored: int) -> None:
        if stored < self._stored and self._shared_out:
            self._owns_buffer = False  # the caller may hold a view of the removed positions
        self._stored = stored

    def reset(self) -> None:
        """Remove all positions."""
        self._keys = self._values = None
        self._stored = 0


class DynamicSlidingWindowLayer(DynamicLayer):
    """The last positions of one layer, for attention within a sliding window.

    Positions that no later query attends to are dropped when the buffer is full, except the last `CROP_MARGIN` of them,
    which a crop may bring back into the window.

    Args:
        window: number of positions that a query attends to, its own included.
    """

    is_sliding = True

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.dropped = 0  # positions that are no longer stored

    def without_window(self) -> CacheLayer:
        """An empty layer that stores the whole past."""
        return DynamicLayer()

    def _set_count(self, count: int) -> None:
        self.dropped = max(self.get_seq_length() - count, 0) if count else 0
        super()._set_count(count)

    def update(self, keys: Tensor, values: Tensor, cache_kwargs: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) and return the last `window - 1 + T` positions, or fewer if there are fewer."""
        check_fit(self._keys, keys)
        if keys.shape[-2] > self.window - 1 + CROP_MARGIN:
            return self._replace(keys, values)
        seen, _ = self.get_mask_sizes(keys.shape[-2])
        all_keys, all_values = self._append(keys, values)
        return all_keys[:, :, -seen:], all_values[:, :, -seen:]

    def _count_to_drop(self, count: int) -> int:
        """Number of oldest positions to drop when `count` are appended: none until the buffer is full."""
        drop = 0 if self._has_capacity(self._stored + count) else max(self._stored - (self.window - 1) - CROP_MARGIN, 0)
        self.dropped += drop
        return drop

    def _replace(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the last ones of more new positions than the layer keeps."""
        first, keep = max(self._stored - (self.window - 1), 0), self.window - 1 + CROP_MARGIN
        seen = self._concat_past(self._keys, keys, first), self._concat_past(self._values, values, first)
        length = self.get_seq_length() + keys.shape[-2]
        self.set_states(keys[:, :, -keep:].clone(), values[:, :, -keep:].clone())
        self.set_seq_length(length)
        return seen

    def get_seq_length(self) -> int:
        """Number of positions appended so far, dropped ones included."""
        return self.dropped + self._stored

    def set_seq_length(self, length: int) -> None:
        """Set the number of positions appended so far; the stored ones become the last of them."""
        self.dropped = length - self._stored

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Number of keys that an update returns, and the position of the first of them."""
        kept = min(self._stored, self.window - 1)
        return kept + num_queries(query_length), self.get_seq_length() - kept

    def crop(self, max_length: int) -> None:
        """Remove all positions from `max_length` on; a negative number removes that many from the end.

        Raises:
            InputError: the shorter past would need positions that have been dropped.
        """
        length = cropped_length(max_length, self.get_seq_length())
        check_crop(length, self.get_seq_length(), self.dropped, self.window)
        if length == 0:
            self.reset()
        self._truncate(length - self.dropped)

    def reset(self) -> None:
        """Remove all positions."""
        super().reset()
        self.dropped = 0


_RESERVABLE = (DynamicLayer, DynamicSlidingWindowLayer)  # a subclass may append in another way


def check_crop(length: int, seen: int, oldest: int, window: int) -> None:
    """Raise InputError if a window cannot be cropped.

    Args:
        length: number of positions after the crop.
        seen: number of positions before it.
        oldest: first position that is still stored.
        window: number of positions that a query attends to, its own included.
    """
    if length > 0 and oldest > max(length - (window - 1), 0):
        raise InputError(
            f"a window of {window} positions cannot be cropped from {seen} to {length}: the positions before "
            f"{oldest} have been dropped; crop by fewer positions or run the prompt again"
        )


class DynamicCache(Cache):
    """A cache without a fixed size; sliding-window layers store their window only.

    Args:
        ddp_cache_data: (keys, values) for each layer to start from, each (B, H, S, D).
        config: the model's configuration; its `layer_windows`, if any, are the windows of the layers.
        offloading: store keys and values in host memory, and copy each layer's to the device during the layer before.
        offload_only_non_sliding: with `offloading`, store sliding-window layers on the device.
    """

    def __init__(
        self,
        ddp_cache_data: Iterable[tuple[Tensor, Tensor]] | None = None,
        config: PretrainedConfig | None = None,
        offloading: bool = False,
        offload_only_non_sliding: bool = False,
    ) -> None:
        transfers = Transfers()
        super().__init__((), functools.partial(OffloadedLayer, transfers) if offloading else DynamicLayer)
        for window in windows_of(config) if config is not None else ():
            if offloading and (window is None or not offload_only_non_sliding):
                self.layers.append(OffloadedLayer(transfers, window))
            else:
                self.layers.append(DynamicLayer() if window is None else DynamicSlidingWindowLayer(window))
        for i, (keys, values) in enumerate(ddp_cache_data or ()):
            self.layer(i).set_states(keys, values)
        self._align()

    def _align(self) -> None:
        """Set the length of sliding-window layers to that of the longest layer; check that the others have it."""
        held = [layer for layer in self.layers if layer.get_seq_length()]
        length = max([0, *[layer.get_seq_length() for layer in held]])
        for layer in held:
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.set_seq_length(length)
            elif layer.get_seq_length() < length:
                raise InputError(
                    f"a layer of the given keys and values holds {layer.get_seq_length()} positions, and another "
                    f"{length}; if it has a sliding window, pass config=model.config, which has the windows"
                )

    def lift_windows(self) -> None:
        """Store all positions in layers that are still empty, for attention that may look beyond a window."""
        for i, layer in enumerate(self.layers):
            if type(layer) is DynamicSlidingWindowLayer and not layer.get_seq_length():
                self.layers[i] = DynamicLayer()

    @classmethod
    def from_legacy_cache(
        cls, past_key_values: LegacyCache | None = None, config: PretrainedConfig | None = None
    ) -> DynamicCache:
        """A cache from a tuple of (keys, values) for each layer, each (B, H, S, D)."""
        return cls(past_key_values, config=config)


class OffloadedCache(DynamicCache):
    """`DynamicCache(offloading=True)`; its arguments are those of `DynamicCache`."""

    def __init__(
        self, ddp_cache_data: Iterable[tuple[Tensor, Tensor]] | None = None, config: PretrainedConfig | None = None
    ) -> None:
        super().__init__(ddp_cache_data, config, offloading=True)
