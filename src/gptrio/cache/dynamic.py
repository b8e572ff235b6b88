"""Caches that grow as they are fed: whole past, or a rolling window of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gptrio.cache.base import Cache, CacheLayer, LegacyCache, as_positions
from gptrio.config.base import PretrainedConfig
from gptrio.errors import InputError


class DynamicLayer(CacheLayer):
    """The whole past of one layer, in a buffer with room to spare.

    Appending writes into the room, so that a step costs what it adds and not what is there. While autograd records,
    nothing is written in place: the past and the new positions are concatenated.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._keys: Tensor | None = None  # (B, H, room, D)
        self._values: Tensor | None = None
        self._stored = 0  # filled positions of the buffer

    @property
    def keys(self) -> Tensor | None:
        """(B, H, S, D), or None before the first update."""
        return None if self._keys is None else self._keys[:, :, : self._stored]

    @property
    def values(self) -> Tensor | None:
        """(B, H, S, D), or None before the first update."""
        return None if self._values is None else self._values[:, :, : self._stored]

    def update(self, keys: Tensor, values: Tensor, cache_kwargs: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) and return the whole past."""
        self._check_fit(keys)
        if torch.is_grad_enabled():
            self._keys, self._values = _concatenate(self.keys, keys), _concatenate(self.values, values)
            self._stored = self._keys.shape[-2]
            return self._keys, self._values
        start, end = self._stored, self._stored + keys.shape[-2]
        self._keys, self._values = self._with_room(self._keys, keys, end), self._with_room(self._values, values, end)
        self._keys[:, :, start:end] = keys
        self._values[:, :, start:end] = values
        self._stored = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def _with_room(self, buffer: Tensor | None, new: Tensor, end: int) -> Tensor:
        if buffer is not None and buffer.shape[-2] >= end and not _is_frozen(buffer):
            return buffer
        room = end + max(64, end // 4)
        larger = new.new_empty(*new.shape[:-2], room, new.shape[-1])
        if buffer is not None:
            larger[:, :, : self._stored] = buffer[:, :, : self._stored]
        return larger

    def _check_fit(self, keys: Tensor) -> None:
        if self._keys is not None and (self._keys.shape[:2] != keys.shape[:2] or self._keys.shape[3] != keys.shape[3]):
            held, given = tuple(self._keys.shape), tuple(keys.shape)
            raise InputError(
                f"past_key_values hold (batch, heads, _, head width) = {held[:2] + held[3:]}, but this call has "
                f"{given[:2] + given[3:]}; pass the cache that this model made for this batch"
            )

    def get_seq_length(self) -> int:
        """Positions stored."""
        return self._stored

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace keys and values by `function` of them."""
        if self.keys is not None and self.values is not None:
            self._keys, self._values = function(self.keys), function(self.values)

    def crop(self, max_length: int) -> None:
        """Forget all positions from `max_length` on; a negative number forgets that many from the end."""
        self._stored = as_positions(max_length, self._stored)

    def reset(self) -> None:
        """Forget everything."""
        self._keys = self._values = None
        self._stored = 0


class WindowLayer(DynamicLayer):
    """The last positions of one layer: as many as `window` queries to come may see.

    The buffer slides by a whole window at a time. Positions stay until they must make room, so that a crop can go back
    as far as the buffer still reaches.

    Args:
        window: most positions that a query sees, itself included.
    """

    def __init__(self, window: int) -> None:
        """Start empty."""
        super().__init__()
        self.window = window
        self._dropped = 0  # positions that were let go

    def update(self, keys: Tensor, values: Tensor, cache_kwargs: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) and return the last `window - 1 + T` positions, or fewer if there are fewer."""
        self._slide(keys.shape[-2])
        seen, _ = self.get_mask_sizes(keys.shape[-2])
        all_keys, all_values = super().update(keys, values)
        return all_keys[:, :, -seen:], all_values[:, :, -seen:]

    def _slide(self, incoming: int) -> None:
        """Let go of what no query to come can see, once it fills as much room as the window."""
        excess = self._stored - (self.window - 1)
        if self.keys is None or self.values is None or excess < self.window:
            return
        self._keys, self._values = self.keys[:, :, excess:].clone(), self.values[:, :, excess:].clone()
        self._stored -= excess
        self._dropped += excess

    def get_seq_length(self) -> int:
        """Positions seen, those that were let go included."""
        return self._dropped + self._stored

    def skip_to(self, length: int) -> None:
        """Count what is stored as the last of `length` positions."""
        self._dropped = length - self._stored

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys that an update returns, and the position of the first of them."""
        kept = min(self._stored, self.window - 1)
        return kept + query_length, self.get_seq_length() - kept

    def crop(self, max_length: int) -> None:
        """Forget all positions from `max_length` on; a negative number forgets that many from the end.

        Raises:
            InputError: positions that the shorter past would need have been let go.
        """
        length = as_positions(max_length, self.get_seq_length())
        if self._dropped and length - self._dropped < min(self.window - 1, length):
            raise InputError(
                f"a window of {self.window} positions cannot be cropped from {self.get_seq_length()} to {length}: what "
                f"came before position {self._dropped} is gone; crop by fewer positions or run the prompt again"
            )
        self._stored = length - self._dropped

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._dropped = 0


class DynamicCache(Cache):
    """A cache that grows as it is fed; layers with a window keep that window only.

    Args:
        ddp_cache_data: (keys, values) for each layer to start from, each (B, H, S, D).
        config: the model's configuration; its `layer_windows`, where it has them, say which layers are local.
    """

    def __init__(
        self,
        ddp_cache_data: Iterable[tuple[Tensor, Tensor]] | None = None,
        config: PretrainedConfig | None = None,
    ) -> None:
        """Start empty, or from given keys and values."""
        windows: list[int | None] = getattr(config, "layer_windows", None) or []
        super().__init__(lambda i: _growing_layer(windows[i] if i < len(windows) else None))
        with torch.enable_grad():  # given tensors are kept as they are, not copied into a buffer
            for i, (keys, values) in enumerate(ddp_cache_data or ()):
                self.update(keys, values, i)
        self._align()

    def _align(self) -> None:
        """Local layers of given keys and values end where the longest layer ends."""
        length = max((layer.get_seq_length() for layer in self.layers), default=0)
        for layer in self.layers:
            if isinstance(layer, WindowLayer):
                layer.skip_to(length)

    @classmethod
    def from_legacy_cache(
        cls, past_key_values: LegacyCache | None = None, config: PretrainedConfig | None = None
    ) -> DynamicCache:
        """A cache from a tuple of (keys, values) for each layer, each (B, H, S, D)."""
        return cls(past_key_values, config=config)


def _growing_layer(window: int | None) -> DynamicLayer:
    return DynamicLayer() if window is None else WindowLayer(window)


def _concatenate(past: Tensor | None, new: Tensor) -> Tensor:
    return new if past is None else torch.cat([past, new], dim=-2)


def _is_frozen(buffer: Tensor) -> bool:
    """True for a buffer made in inference mode that this call may not write to."""
    return buffer.is_inference() and not torch.is_inference_mode_enabled()
