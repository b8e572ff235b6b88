"""Layers whose keys and values wait in the memory of the host, and come to the device one layer ahead of their use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gptrio.cache.protocol import CacheLayer, as_positions, check_fit, check_room, count_of

new_stream: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream


class Transfers:
    """What the offloaded layers of one cache share: their order, and a stream on which they are moved."""

    def __init__(self) -> None:
        """Start without layers."""
        self.layers: list[OffloadedLayer] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Everything but streams, which belong to a process."""
        return {"layers": self.layers, "_streams": {}}

    def after(self, layer: OffloadedLayer) -> OffloadedLayer:
        """The layer that is used next: the one after it, or the first."""
        return self.layers[(self.layers.index(layer) + 1) % len(self.layers)]

    def stream(self, device: torch.device) -> torch.cuda.Stream | None:
        """The stream for moves to and from `device`, or None where moves wait for each other anyway."""
        if device.type != "cuda":
            return None
        if device not in self._streams:
            self._streams[device] = new_stream(device)
        return self._streams[device]

    def finish(self) -> None:
        """Wait until everything is where it shall be."""
        for stream in self._streams.values():
            stream.synchronize()


class OffloadedLayer(CacheLayer):
    """The past of one layer in the memory of the host; only what an update returns is on the device.

    For inference: no gradient reaches positions of earlier calls.

    Args:
        transfers: shared by the layers of a cache.
        window: most positions that a query sees, itself included; None for all.
        max_cache_len: most positions, whose room is then made at once; None for no limit.
    """

    def __init__(self, transfers: Transfers, window: int | None = None, max_cache_len: int | None = None) -> None:
        """Start empty, as the last layer of `transfers`."""
        self.window = window
        self.max_cache_len = max_cache_len
        self.is_sliding = window is not None
        self._transfers = transfers
        self._host: tuple[Tensor, Tensor] | None = None  # (room, B, H, D) each: a call's positions lie side by side
        self._fetched: tuple[Tensor, Tensor] | None = None  # (kept, B, H, D) each, on the device
        self._device = torch.device("cpu")
        self._stored = 0
        transfers.layers.append(self)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is on the device."""
        self._transfers.finish()
        return {**self.__dict__, "_fetched": None}

    @property
    def keys(self) -> Tensor | None:
        """(B, H, S, D) in the host's memory, or None before the first update."""
        return self._show(0)

    @property
    def values(self) -> Tensor | None:
        """(B, H, S, D) in the host's memory, or None before the first update."""
        return self._show(1)

    def _show(self, which: int) -> Tensor | None:
        self._transfers.finish()
        return None if self._host is None else self._host[which][: self._stored].permute(1, 2, 0, 3).clone()

    def lazy_initialization(self, key_states: Tensor) -> None:
        """Make the room that `max_cache_len` asks for, for the batch, heads, head width and type of (B, H, any, D)."""
        self._device = key_states.device
        self._make_room(key_states, self.max_cache_len or 0)

    def update(self, keys: Tensor, values: Tensor, cache_kwargs: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) and return what this call's queries may see, on the device of `keys`.

        Raises:
            InputError: the keys do not fit what is held, or are too many.
        """
        self._device = keys.device
        end = self._stored + keys.shape[-2]
        if self._host is not None:
            check_fit(self._host[0].permute(1, 2, 0, 3), keys)
        if self.max_cache_len is not None:
            check_room(end, self.max_cache_len)
        past = self._take() if self._stored else None
        following = self._transfers.after(self)
        if following is not self:
            following.prefetch(keys.device)
        new = keys.permute(2, 0, 1, 3), values.permute(2, 0, 1, 3)  # (T, B, H, D)
        self._store(new[0].detach(), new[1].detach(), end)
        seen = new if past is None else (torch.cat([past[0], new[0]]), torch.cat([past[1], new[1]]))
        return seen[0].permute(1, 2, 0, 3), seen[1].permute(1, 2, 0, 3)

    def prefetch(self, device: torch.device) -> None:
        """Start to bring what the next update will return to the device."""
        if self._fetched is not None or self._host is None or not self._stored:
            return
        part = slice(self._stored - self._kept(), self._stored)
        stream = self._transfers.stream(device)
        if stream is None:
            self._fetched = self._host[0][part].to(device), self._host[1][part].to(device)
            return
        with torch.cuda.stream(stream):
            keys, values = (host[part].to(device, non_blocking=True) for host in self._host)
        self._fetched = keys, values

    def _take(self) -> tuple[Tensor, Tensor]:
        """What `prefetch` brings, once it has arrived."""
        self.prefetch(self._device)
        assert self._fetched is not None
        fetched, self._fetched = self._fetched, None
        stream = self._transfers.stream(self._device)
        if stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(stream)
            for tensor in fetched:
                tensor.record_stream(current)
        return fetched

    def _store(self, keys: Tensor, values: Tensor, end: int) -> None:
        """Copy (T, B, H, D) to the host, as positions up to `end`."""
        buffers = self._host
        if buffers is None or buffers[0].shape[0] < end:
            buffers = self._make_room(keys.permute(1, 2, 0, 3), self.max_cache_len or end + max(64, end // 4))
        start, self._stored = self._stored, end
        stream = self._transfers.stream(self._device)
        if stream is None:
            buffers[0][start:end].copy_(keys)
            buffers[1][start:end].copy_(values)
            return
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for host, new in zip(buffers, (keys, values), strict=True):
                host[start:end].copy_(new, non_blocking=True)
                new.record_stream(stream)

    def _make_room(self, like: Tensor, room: int) -> tuple[Tensor, Tensor]:
        """Move to buffers of `room` positions, for the batch, heads, head width and type of (B, H, any, D)."""
        self._transfers.finish()
        shape = (room, *like.shape[:2], like.shape[3])
        with torch.inference_mode(False):  # tensors of inference mode could not be written outside of it
            keys, values = (
                torch.empty(shape, dtype=like.dtype, device="cpu", pin_memory=self._device.type == "cuda")
                for _ in range(2)
            )
        if self._host is not None:
            keys[: self._stored], values[: self._stored] = (host[: self._stored] for host in self._host)
        self._host = keys, values
        return self._host

    def _kept(self) -> int:
        return self._stored if self.window is None else min(self._stored, self.window - 1)

    def get_seq_length(self) -> int:
        """Positions stored."""
        return self._stored

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Number of keys that an update returns, and the position of the first of them."""
        return self._kept() + count_of(query_length), self._stored - self._kept()

    def get_max_cache_shape(self) -> int:
        """Most positions that fit, or -1 if there is no limit."""
        return -1 if self.max_cache_len is None else self.max_cache_len

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace keys and values by `function` of them."""
        keys, values, self._fetched = self.keys, self.values, None
        if keys is None or values is None:
            return
        keys, values, self._host = function(keys), function(values), None
        host = self._make_room(keys, self.max_cache_len or self._stored)
        for buffer, states in zip(host, (keys, values), strict=True):
            buffer[: self._stored] = states.permute(2, 0, 1, 3)

    def crop(self, max_length: int) -> None:
        """Forget all positions from `max_length` on; a negative number forgets that many from the end."""
        self._stored = as_positions(max_length, self._stored)
        self._fetched = None

    def reset(self) -> None:
        """Forget everything, keeping the room."""
        self.crop(0)
