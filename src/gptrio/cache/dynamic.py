"""Caches that grow as they are fed: whole past, or a rolling window of it."""

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
    as_positions,
    check_fit,
    count_of,
    joined,
    windows_of,
)
from gptrio.config.base import PretrainedConfig
from gptrio.errors import InputError
from gptrio.kernels import guards


class DynamicLayer(CacheLayer):
    """The whole past of one layer, in a buffer with room to spare.

    Appending writes into the room, so that a step costs what it adds and not what is there. While autograd records,
    nothing is written in place: the past and the new positions are concatenated. Tensors that others may hold, given or
    handed out, are never changed.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._keys: Tensor | None = None  # (B, H, room, D)
        self._values: Tensor | None = None
        self._stored = 0  # filled positions of the buffer
        self._owned = False  # free positions of the buffer are this layer's to write
        self._lent = False  # others may look at filled positions

    @property
    def keys(self) -> Tensor | None:
        """(B, H, S, D), or None before the first update."""
        self._lent = True
        return None if self._keys is None else self._keys[:, :, : self._stored]

    @keys.setter
    def keys(self, keys: Tensor | None) -> None:
        """Hold other keys (B, H, S, D), and as many positions as they have; set values of as many too."""
        self._keys = self._taken(keys)

    @property
    def values(self) -> Tensor | None:
        """(B, H, S, D), or None before the first update."""
        self._lent = True
        return None if self._values is None else self._values[:, :, : self._stored]

    @values.setter
    def values(self, values: Tensor | None) -> None:
        """Hold other values (B, H, S, D), and as many positions as they have; set keys of as many too."""
        self._values = self._taken(values)

    def _taken(self, states: Tensor | None) -> Tensor | None:
        """The states that are set, as they are to be kept: the caller's tensor is never written to."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys[:, :, : self._stored], self._values[:, :, : self._stored]
        self._owned = False
        if states is None or states.numel() == 0:
            self._note_stored(0)
            return None
        self._note_stored(states.shape[-2])
        return states

    def _note_stored(self, count: int) -> None:
        """Take note that the caller has set so many positions."""
        self._stored = count

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of what is stored, or None before the first update."""
        return None if self._keys is None else self._keys.dtype

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, room, D) with the room to spare; only where something is stored."""
        assert self._keys is not None
        assert self._values is not None
        return self._keys, self._values

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Start from given keys and values (B, H, S, D), which are not copied until they must be changed."""
        self._keys, self._values, self._stored, self._owned = keys, values, keys.shape[-2], False

    def update(self, keys: Tensor, values: Tensor, cache_kwargs: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) and return the whole past."""
        check_fit(self._keys, keys)
        return self._append(keys, values)

    def holds(self, rows: int, heads: int, width: int, dtype: torch.dtype) -> bool:
        """Whether there are keys and values (rows, heads, S, width) of a dtype, in the CPU's memory."""
        keys, values = self._keys, self._values
        if keys is None or values is None or keys.dim() != 4:
            return False
        shape = keys.shape
        alike = values.shape == shape and keys.dtype is dtype and values.dtype is dtype
        plain = keys.is_cpu and values.is_cpu and keys.layout is values.layout is torch.strided
        return alike and plain and shape[0] == rows and shape[1] == heads and shape[3] == width

    def is_in(self, keys: Tensor, values: Tensor, length: int) -> bool:
        """Whether this many positions were seen, and still lie in buffers that were given out."""
        return self._keys is keys and self._values is values and self.get_seq_length() == length

    def reserve(self, guarded: bool = False) -> tuple[Tensor, Tensor, int]:
        """Count one more position as stored, for the caller to write without autograd.

        Args:
            guarded: the buffers shall lie between guard words.

        Returns:
            The buffers (B, H, room, D) of keys and values, contiguous, and the place of the new position in them.
        """
        keys, values = self._keys, self._values
        assert keys is not None
        assert values is not None
        if not guarded and self._has_room(self._stored + 1) and keys.is_contiguous() and values.is_contiguous():
            self._stored += 1
            return keys, values, self._stored - 1
        if not (keys.is_contiguous() and values.is_contiguous()):
            self._owned = False
        if guarded and not (guards.is_guarded(keys) and guards.is_guarded(values)):
            self._owned = False
        place = self._make_room(keys, values, 1, self._let_go(1))
        return *self.buffers, place

    def _let_go(self, count: int) -> int:
        """Oldest positions to drop for `count` new ones."""
        return 0

    def _append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append to what is kept, and return all of it."""
        drop = self._let_go(keys.shape[-2])
        if torch.is_grad_enabled():
            self._keys, self._values = self._longer(self._keys, keys, drop), self._longer(self._values, values, drop)
            self._owned = False
            self._stored = self._keys.shape[-2]
            return self._keys, self._values
        start = self._make_room(keys, values, keys.shape[-2], drop)
        assert self._keys is not None
        assert self._values is not None
        self._keys[:, :, start : self._stored] = keys
        self._values[:, :, start : self._stored] = values
        return self._keys[:, :, : self._stored], self._values[:, :, : self._stored]

    def _make_room(self, keys: Tensor, values: Tensor, count: int, drop: int) -> int:
        """Store `count` more positions, shaped like keys and values, without writing them; the place of the first."""
        start = self._stored - drop
        if drop or not self._has_room(start + count):
            self._keys = self._with_room(self._keys, keys, drop, start + count)
            self._values = self._with_room(self._values, values, drop, start + count)
            self._owned, self._lent = True, False
        self._stored = start + count
        return start

    def _longer(self, past: Tensor | None, new: Tensor, drop: int) -> Tensor:
        return joined(None if past is None else past[:, :, drop : self._stored], new)

    def _has_room(self, end: int) -> bool:
        buffer = self._keys
        if buffer is None or not self._owned or buffer.shape[-2] < end:
            return False
        return torch.is_inference_mode_enabled() or not buffer.is_inference()  # else this call may not write to it

    def _with_room(self, buffer: Tensor | None, new: Tensor, drop: int, end: int) -> Tensor:
        shape = (*new.shape[:-2], end + max(64, end // 4), new.shape[-1])
        guarded = new.is_cpu and guards.are_on()
        larger = guards.guarded_empty(shape, new.dtype) if guarded else new.new_empty(shape)
        if buffer is not None:
            larger[:, :, : self._stored - drop] = buffer[:, :, drop : self._stored]
        return larger

    def get_seq_length(self) -> int:
        """Positions stored."""
        return self._stored

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace keys and values by `function` of them; room to spare stays for the next step."""
        if self._keys is not None and self._values is not None:
            end = self._keys.shape[-2] if self._owned else self._stored
            self._keys, self._values = function(self._keys[:, :, :end]), function(self._values[:, :, :end])
            self._lent = False

    def crop(self, max_length: int) -> None:
        """Forget all positions from `max_length` on; a negative number forgets that many from the end."""
        self._shorten(as_positions(max_length, self._stored))

    def _shorten(self, stored: int) -> None:
        if stored < self._stored and self._lent:
            self._owned = False  # what is cut off may be in use elsewhere
        self._stored = stored

    def reset(self) -> None:
        """Forget everything."""
        self._keys = self._values = None
        self._stored = 0


class DynamicSlidingWindowLayer(DynamicLayer):
    """The last positions of one layer: as many as `window` queries to come may see.

    Older positions are let go when the buffer is full, all but as many (`CROP_MARGIN`) as a crop may want to go back.

    Args:
        window: most positions that a query sees, itself included.
    """

    is_sliding = True

    def __init__(self, window: int) -> None:
        """Start empty."""
        super().__init__()
        self.window = window
        self._dropped = 0  # positions that were let go

    def _note_stored(self, count: int) -> None:
        self._dropped = max(self.get_seq_length() - count, 0) if count else 0
        super()._note_stored(count)

    def update(self, keys: Tensor, values: Tensor, cache_kwargs: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) and return the last `window - 1 + T` positions, or fewer if there are fewer."""
        check_fit(self._keys, keys)
        if keys.shape[-2] > self.window - 1 + CROP_MARGIN:
            return self._replace(keys, values)
        seen, _ = self.get_mask_sizes(keys.shape[-2])
        all_keys, all_values = self._append(keys, values)
        return all_keys[:, :, -seen:], all_values[:, :, -seen:]

    def _let_go(self, count: int) -> int:
        """Oldest positions to drop for `count` new ones: those that no query to come sees, once the buffer is full."""
        drop = 0 if self._has_room(self._stored + count) else max(self._stored - (self.window - 1) - CROP_MARGIN, 0)
        self._dropped += drop
        return drop

    def _replace(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take in more positions at once than are kept: their last ones are all that stays."""
        first, kept = max(self._stored - (self.window - 1), 0), self.window - 1 + CROP_MARGIN
        seen = self._longer(self._keys, keys, first), self._longer(self._values, values, first)
        length = self.get_seq_length() + keys.shape[-2]
        self.hold(keys[:, :, -kept:].clone(), values[:, :, -kept:].clone())
        self.skip_to(length)
        return seen

    def get_seq_length(self) -> int:
        """Positions seen, those that were let go included."""
        return self._dropped + self._stored

    def skip_to(self, length: int) -> None:
        """Count what is stored as the last of `length` positions."""
        self._dropped = length - self._stored

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Number of keys that an update returns, and the position of the first of them."""
        kept = min(self._stored, self.window - 1)
        return kept + count_of(query_length), self.get_seq_length() - kept

    def crop(self, max_length: int) -> None:
        """Forget all positions from `max_length` on; a negative number forgets that many from the end.

        Raises:
            InputError: positions that the shorter past would need have been let go.
        """
        length = as_positions(max_length, self.get_seq_length())
        check_reach(length, self.get_seq_length(), self._dropped, self.window)
        if length == 0:
            self.reset()
        self._shorten(length - self._dropped)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._dropped = 0


def check_reach(length: int, seen: int, oldest: int, window: int) -> None:
    """Raise InputError if a window cannot be cropped.

    Args:
        length: positions to be left.
        seen: positions seen.
        oldest: first position that is still there.
        window: most positions that a query sees, itself included.
    """
    if length > 0 and oldest > max(length - (window - 1), 0):
        raise InputError(
            f"a window of {window} positions cannot be cropped from {seen} to {length}: what came before position "
            f"{oldest} is gone; crop by fewer positions or run the prompt again"
        )


class DynamicCache(Cache):
    """A cache that grows as it is fed; layers with a window keep that window only.

    Args:
        ddp_cache_data: (keys, values) for each layer to start from, each (B, H, S, D).
        config: the model's configuration; its `layer_windows`, where it has them, say which layers are local.
        offloading: keep keys and values in the memory of the host, and bring them to the device a layer ahead.
        offload_only_non_sliding: local layers stay on the device.
    """

    def __init__(
        self,
        ddp_cache_data: Iterable[tuple[Tensor, Tensor]] | None = None,
        config: PretrainedConfig | None = None,
        offloading: bool = False,
        offload_only_non_sliding: bool = False,
    ) -> None:
        """Start empty, or from given keys and values."""
        transfers = Transfers()
        super().__init__((), functools.partial(OffloadedLayer, transfers) if offloading else DynamicLayer)
        for window in windows_of(config) if config is not None else ():
            if offloading and (window is None or not offload_only_non_sliding):
                self.layers.append(OffloadedLayer(transfers, window))
            else:
                self.layers.append(DynamicLayer() if window is None else DynamicSlidingWindowLayer(window))
        for i, (keys, values) in enumerate(ddp_cache_data or ()):
            self.layer(i).hold(keys, values)
        self._align()

    def _align(self) -> None:
        """Local layers of given keys and values end where the longest layer ends; others must be as long."""
        held = [layer for layer in self.layers if layer.get_seq_length()]
        length = max([0, *[layer.get_seq_length() for layer in held]])
        for layer in held:
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.skip_to(length)
            elif layer.get_seq_length() < length:
                raise InputError(
                    f"a layer of the given keys and values holds {layer.get_seq_length()} positions, and another "
                    f"{length}; if that is a window, pass config=model.config, which tells where windows are"
                )

    @classmethod
    def from_legacy_cache(
        cls, past_key_values: LegacyCache | None = None, config: PretrainedConfig | None = None
    ) -> DynamicCache:
        """A cache from a tuple of (keys, values) for each layer, each (B, H, S, D)."""
        return cls(past_key_values, config=config)


class OffloadedCache(DynamicCache):
    """`DynamicCache(offloading=True)`.

    Args:
        ddp_cache_data: (keys, values) for each layer to start from, each (B, H, S, D).
        config: the model's configuration, as for `DynamicCache`.
    """

    def __init__(
        self,
        ddp_cache_data: Iterable[tuple[Tensor, Tensor]] | None = None,
        config: PretrainedConfig | None = None,
    ) -> None:
        """Start empty, or from given keys and values."""
        super().__init__(ddp_cache_data, config, offloading=True)
