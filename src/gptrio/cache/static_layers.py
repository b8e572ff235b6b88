"""Layers of a fixed size, written in place, so that every compiled step has the same shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gptrio.cache.dynamic import check_crop
from gptrio.cache.protocol import (
    CROP_MARGIN,
    CacheLayer,
    check_capacity,
    check_fit,
    concat,
    cropped_length,
    num_queries,
)
from gptrio.errors import InputError
from gptrio.kernels.cuda_graph import is_capturing


class StaticLayer(CacheLayer):
    """The past of one layer in a buffer of `max_cache_len` positions.

    An update with `cache_position` writes there and returns the whole buffer: no shape depends on the length, so that
    one compiled graph serves every step. An update without it appends at the stored length, an integer, and returns the
    filled part.

    Args:
        max_cache_len: capacity in positions.
    """

    is_compileable = True

    def __init__(self, max_cache_len: int) -> None:
        """Start empty; the buffer is made by `lazy_initialization` or the first update."""
        self.max_cache_len = max_cache_len
        self._slots = max_cache_len
        self._keys: Tensor | None = None  # (B, H, slots, D)
        self._values: Tensor | None = None
        self._end: Tensor | None = None  # () number of positions appended, which a compiled graph can write
        self._length: int | None = 0  # the same as an integer; None after a write at `cache_position`

    @property
    def keys(self) -> Tensor | None:
        """(B, H, slots, D), the whole buffer, or None before there is one."""
        return self._keys

    @keys.setter
    def keys(self, keys: Tensor) -> None:
        """Replace the keys by (B, H, slots, D); slots that are all zeros count as empty."""
        self._set("_keys", keys)
        if not (self.is_sliding and self.get_seq_length()):  # the length of a full ring is not visible in its slots
            self._set_length(int(keys[0, 0].any(dim=-1).sum()))

    @property
    def values(self) -> Tensor | None:
        """(B, H, slots, D), the whole buffer, or None before there is one."""
        return self._values

    @values.setter
    def values(self, values: Tensor) -> None:
        """Replace the values by (B, H, slots, D)."""
        self._set("_values", values)

    def _set(self, name: str, states: Tensor) -> None:
        """Copy the caller's states into the buffer, whose address a captured CUDA graph reads."""
        if states.dim() != 4 or states.shape[2] != self._slots:
            raise InputError(
                f"a {type(self).__name__} holds (batch, heads, {self._slots}, head width); got {tuple(states.shape)}"
            )
        held = getattr(self, name)
        if held is None or held.shape != states.shape or held.dtype != states.dtype or held.device != states.device:
            self.lazy_initialization(states)
            self._set_length(0)
            held = getattr(self, name)
        with torch.no_grad():
            held.copy_(states)

    def get_states(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the filled positions, or None if there are none."""
        length = self.get_seq_length()
        if self._keys is None or self._values is None or not length:
            return None
        return self._keys[:, :, :length], self._values[:, :, :length]

    def lazy_initialization(self, key_states: Tensor) -> None:
        """Make the buffer for the batch, heads, head width, type and device of (B, H, any, D)."""
        shape = (*key_states.shape[:2], self._slots, key_states.shape[3])
        if torch.compiler.is_compiling():
            self._make_buffers(shape, key_states)
            return
        with torch.inference_mode(False):  # inference tensors could not be written outside of inference mode
            self._make_buffers(shape, key_states)
        if key_states.is_cuda:
            for tensor in (self._keys, self._values, self._end):
                torch._dynamo.mark_static_address(tensor)  # CUDA graphs need not copy them

    def _make_buffers(self, shape: tuple[int, ...], like: Tensor) -> None:
        """Make buffers of zeros: an undefined number may be NaN, and 0 * NaN spoils the sum even if it is masked."""
        self._keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self._values = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self._end = torch.zeros((), dtype=torch.long, device=like.device)

    def update(self, keys: Tensor, values: Tensor, cache_kwargs: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, D) and return the keys and values that this call's queries may attend to.

        Raises:
            TokenIdError: the positions exceed the capacity (on a GPU, or compiled, torch reports this).
            InputError: they leave a gap.
        """
        position: Tensor | None = (cache_kwargs or {}).get("cache_position")
        if self._keys is None:
            self.lazy_initialization(keys)
        check_fit(self._keys, keys)
        if position is None:
            start = self.get_seq_length()
            check_capacity(start + keys.shape[-2], self.max_cache_len)
            states = self._append(keys, values, start)
            self._set_length(start + keys.shape[-2])
            return states
        if not (torch.compiler.is_compiling() or is_capturing() or position.is_cuda):
            self._check_positions(position)
        states = self._write(keys, values, position)
        assert self._end is not None
        self._end.copy_(position[-1] + 1)
        self._length = None
        return states

    def _append(self, keys: Tensor, values: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Write from the integer `start` on, and return the filled part."""
        end = start + keys.shape[-2]
        all_keys, all_values = self._put(keys, values, torch.arange(start, end, device=keys.device))
        return all_keys[:, :, :end], all_values[:, :, :end]

    def _write(self, keys: Tensor, values: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Write at `position` (T,), and return keys and values of a shape that depends on T only."""
        return self._put(keys, values, position)

    def _put(self, keys: Tensor, values: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, D) into the slots (T,) and return the whole buffer."""
        assert self._keys is not None and self._values is not None
        self._keys, self._values = _written(self._keys, keys, slots), _written(self._values, values, slots)
        return self._keys, self._values

    def _check_positions(self, position: Tensor) -> None:
        """Raise an error for positions beyond the capacity or after a gap; crop the past to the first of them."""
        first, length = int(position[0]), self.get_seq_length()
        check_capacity(int(position[-1]) + 1, self.max_cache_len)
        if first > length:
            raise InputError(
                f"cache_position starts at {first}, but the static cache holds {length} positions; expected {length} "
                "or less"
            )
        if first < length:
            self.crop(first)

    def get_seq_length(self) -> int:
        """Number of positions appended so far."""
        if self._length is None:
            assert self._end is not None
            self._length = int(self._end)
        return self._length

    def _set_length(self, length: int) -> None:
        self._length = length
        if self._end is not None:
            self._end.fill_(length)

    def sync_seq_length(self, length: int) -> None:
        """Record the length that a replayed CUDA graph has already written on the device."""
        self._length = length

    def next_positions(self, length: int, device: torch.device) -> Tensor:
        """(length,) the next positions, computed without reading the length on the host."""
        new = torch.arange(length, device=device)
        return new if self._end is None else new + self._end

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Number of keys that an update returns, and the position of the first of them."""
        if isinstance(query_length, Tensor):
            return self.max_cache_len, 0
        return self.get_seq_length() + query_length, 0

    def get_max_cache_shape(self) -> int:
        """Capacity in positions."""
        return self.max_cache_len

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace keys and values by `function` of them, in place if the number of rows stays the same."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = _replaced(self._keys, function), _replaced(self._values, function)

    def crop(self, max_length: int) -> None:
        """Remove all positions from `max_length` on; a negative number removes that many from the end."""
        self._set_length(cropped_length(max_length, self.get_seq_length()))

    def reset(self) -> None:
        """Remove all positions; the buffers stay."""
        self._set_length(0)
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys.detach().zero_(), self._values.detach().zero_()


class SlidingWindowLayer(StaticLayer):
    """The last positions of one layer, in a ring buffer: position `p` is in slot `p % slots`.

    There are `window` slots, and `CROP_MARGIN` more for short chunks and crops; `key_positions` returns the position of
    each slot.

    Args:
        max_cache_len: capacity in positions, dropped ones included.
        sliding_window: number of positions that a query attends to, its own included.
    """

    is_sliding = True

    def __init__(self, max_cache_len: int, sliding_window: int) -> None:
        super().__init__(max_cache_len)
        self.sliding_window = sliding_window
        self._slots = min(sliding_window + CROP_MARGIN, max_cache_len)
        self._oldest = 0  # first position still stored after a crop; later ones may push it out

    def without_window(self) -> StaticLayer:
        """An empty layer that stores the whole past."""
        return StaticLayer(self.max_cache_len)

    def get_states(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the stored positions, oldest first, or None if there are none."""
        return self._last(self.get_seq_length() - self._oldest_stored())

    def _oldest_stored(self) -> int:
        return max(self._oldest, self.get_seq_length() - self._slots)

    def _last(self, count: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the last `count` positions, in order, or None for none."""
        if self._keys is None or self._values is None or not count:
            return None
        end = self.get_seq_length()
        slots = torch.arange(end - count, end, device=self._keys.device) % self._slots
        return self._keys.index_select(2, slots), self._values.index_select(2, slots)

    def _append(self, keys: Tensor, values: Tensor, start: int) -> tuple[Tensor, Tensor]:
        past = self._last(min(start, self.sliding_window - 1)) or (None, None)
        self._write_last(keys, values, torch.arange(start, start + keys.shape[-2], device=keys.device))
        return concat(past[0], keys), concat(past[1], values)

    def _write(self, keys: Tensor, values: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        if self._fits_beside_window(keys.shape[-2]):
            return self._put(keys, values, position % self._slots)
        seen = concat(self._keys, keys), concat(self._values, values)
        self._write_last(keys, values, position)
        return seen

    def _write_last(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        """Write the last positions of (T,), as many as there are slots."""
        n = self._slots
        self._put(keys[:, :, -n:], values[:, :, -n:], position[-n:] % n)

    def _fits_beside_window(self, count: int) -> bool:
        """Whether `count` positions can be written without overwriting the window of the first of them."""
        return self._slots == self.max_cache_len or count <= self._slots - self.sliding_window + 1

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Number of keys that an update returns, and the position of the first if they are consecutive."""
        count = num_queries(query_length)
        if isinstance(query_length, Tensor):
            return self._slots + (0 if self._fits_beside_window(count) else count), 0
        kept = min(self.get_seq_length(), self.sliding_window - 1)
        return kept + count, self.get_seq_length() - kept

    def key_positions(self, cache_position: Tensor) -> Tensor | None:
        """(S,) position of each slot, negative for empty ones, then of new keys that are returned after the ring."""
        beside = self._fits_beside_window(cache_position.shape[0])
        last = cache_position[-1] if beside else cache_position[0] - 1
        slots = torch.arange(self._slots, device=cache_position.device)
        held = last - (last - slots) % self._slots  # the newest position that maps to the slot
        return held if beside else torch.cat([held, cache_position])

    def get_max_cache_shape(self) -> int:
        """Number of positions that a query attends to."""
        return min(self.sliding_window, self.max_cache_len)

    def crop(self, max_length: int) -> None:
        """Remove all positions from `max_length` on; a negative number removes that many from the end.

        Raises:
            InputError: the shorter past would need positions that have been dropped.
        """
        seen = self.get_seq_length()
        length = cropped_length(max_length, seen)
        oldest = self._oldest_stored()
        check_crop(length, seen, oldest, self.sliding_window)
        self._oldest = oldest if length else 0
        self._set_length(length)

    def reset(self) -> None:
        """Remove all positions; the buffers stay."""
        super().reset()
        self._oldest = 0


def _written(buffer: Tensor, states: Tensor, slots: Tensor) -> Tensor:
    """Write `states` into `slots` of `buffer`: in place, or in a new tensor if autograd records one of them."""
    states = states.to(buffer.dtype)
    if torch.is_grad_enabled() and (states.requires_grad or buffer.requires_grad):
        return buffer.index_copy(2, slots, states)
    return buffer.index_copy_(2, slots, states)


def _replaced(buffer: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    new = function(buffer)
    if new.shape != buffer.shape or buffer.requires_grad:
        return new
    return buffer.copy_(new)
