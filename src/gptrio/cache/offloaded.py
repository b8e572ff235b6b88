"""Layers that store keys and values in host memory and copy them to the device while the layer before is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gptrio.cache.protocol import CacheLayer, check_capacity, check_fit, cropped_length, num_queries

new_stream: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream


class Transfers:
    """What the offloaded layers of one cache share: their order, and a CUDA stream for the copies."""

    def __init__(self) -> None:
        self.layers: list[OffloadedLayer] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Everything but streams, which belong to a process."""
        return {"layers": self.layers, "_streams": {}}

    def after(self, layer: OffloadedLayer) -> OffloadedLayer:
        """The layer that is computed next: the one after `layer`, or the first."""
        return self.layers[(self.layers.index(layer) + 1) % len(self.layers)]

    def stream(self, device: torch.device) -> torch.cuda.Stream | None:
        """The stream for copies to and from `device`; None where copies are synchronous."""
        if device.type != "cuda":
            return None
        if device not in self._streams:
            self._streams[device] = new_stream(device)
        return self._streams[device]

    def finish(self) -> None:
        """Wait until all copies are done."""
        for stream in self._streams.values():
            stream.synchronize()


class OffloadedLayer(CacheLayer):
    """The past of one layer in host memory; only the tensors that an update returns are on the device.

    For inference only: no gradient reaches positions of earlier calls.

    Args:
        transfers: shared by the layers of a cache.
        window: number of positions that a query attends to, its own included; None for all.
        max_cache_len: capacity in positions, allocated at once; None for no limit.
    """

    def __init__(self, transfers: Transfers, window: int | None = None, max_cache_len: int | None = None) -> None:
        self.window = window
        self.max_cache_len = max_cache_len
        self.is_sliding = window is not None
        self._transfers = transfers
        # (capacity, B, H, D) each: the positions of a call are contiguous
        self._host: tuple[Tensor, Tensor] | None = None
        self._fetched: tuple[Tensor, Tensor] | None = None  # (visible, B, H, D) each, on the device
        self._device = torch.device("cpu")
        self._stored = 0
        transfers.layers.append(self)

    def without_window(self) -> OffloadedLayer:
        """This layer, which stores the whole past from now on."""
        self.window, self.is_sliding = None, False
        return self

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
        """Allocate `max_cache_len` positions for the batch, heads, head width and dtype of (B, H, any, D)."""
        self._device = key_states.device
        self._allocate(key_states, self.max_cache_len or 0)

    def update(self, keys: Tensor, values: Tensor, cache_kwargs: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) and return the keys and values that this call's queries may attend to, on their device.

        Raises:
            InputError: shapes do not fit the stored keys, or the capacity is exceeded.
        """
        self._device = keys.device
        end = self._stored + keys.shape[-2]
        if self._host is not None:
            check_fit(self._host[0].permute(1, 2, 0, 3), keys)
        if self.max_cache_len is not None:
            check_capacity(end, self.max_cache_len)
        past = self._take() if self._stored else None
        following = self._transfers.after(self)
        if following is not self:
            following.prefetch(keys.device)
        new = keys.permute(2, 0, 1, 3), values.permute(2, 0, 1, 3)  # (T, B, H, D)
        self._store(new[0].detach(), new[1].detach(), end)
        seen = new if past is None else (torch.cat([past[0], new[0]]), torch.cat([past[1], new[1]]))
        return seen[0].permute(1, 2, 0, 3), seen[1].permute(1, 2, 0, 3)

    def prefetch(self, device: torch.device) -> None:
        """Start to copy to the device the past that the next update returns."""
        if self._fetched is not None or self._host is None or not self._stored:
            return
        part = slice(self._stored - self._visible(), self._stored)
        stream = self._transfers.stream(device)
        if stream is None:
            self._fetched = self._host[0][part].to(device), self._host[1][part].to(device)
            return
        with torch.cuda.stream(stream):
            keys, values = (host[part].to(device, non_blocking=True) for host in self._host)
        self._fetched = keys, values

    def _take(self) -> tuple[Tensor, Tensor]:
        """Wait for `prefetch` and return what it has copied."""
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
        """Copy (T, B, H, D) to the host, as the positions before `end`."""
        buffers = self._host
        if buffers is None or buffers[0].shape[0] < end:
            buffers = self._allocate(keys.permute(1, 2, 0, 3), self.max_cache_len or end + max(64, end // 4))
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

    def _allocate(self, like: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """Move to buffers of `capacity` positions for the batch, heads, head width and dtype of (B, H, any, D)."""
        self._transfers.finish()
        shape = (capacity, *like.shape[:2], like.shape[3])
        with torch.inference_mode(False):  # inference tensors could not be written outside of inference mode
            keys, values = (
                torch.empty(shape, dtype=like.dtype, device="cpu", pin_memory=self._device.type == "cuda")
                for _ in range(2)
            )
        if self._host is not None:
            keys[: self._stored], values[: self._stored] = (host[: self._stored] for host in self._host)
        self._host = keys, values
        return self._host

    def _visible(self) -> int:
        return self._stored if self.window is None else min(self._stored, self.window - 1)

    def get_seq_length(self) -> int:
        """Number of positions stored."""
        return self._stored

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Number of keys that an update returns, and the position of the first of them."""
        return self._visible() + num_queries(query_length), self._stored - self._visible()

    def get_max_cache_shape(self) -> int:
        """Capacity in positions, or -1 if there is no limit."""
        return -1 if self.max_cache_len is None else self.max_cache_len

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace keys and values by `function` of them."""
        keys, values, self._fetched = self.keys, self.values, None
        if keys is None or values is None:
            return
        keys, values, self._host = function(keys), function(values), None
        host = self._allocate(keys, self.max_cache_len or self._stored)
        for buffer, states in zip(host, (keys, values), strict=True):
            buffer[: self._stored] = states.permute(2, 0, 1, 3)

    def crop(self, max_length: int) -> None:
        """Remove all positions from `max_length` on; a negative number removes that many from the end."""
        self._stored = cropped_length(max_length, self._stored)
        self._fetched = None

    def reset(self) -> None:
        """Remove all positions; the buffers stay."""
        self.crop(0)
