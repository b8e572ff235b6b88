"""The cache protocol: what models and `generate` call on any cache, and what each kind of layer implements.

Shapes: keys and values (B, H, S, D); `S` counts stored positions, `T` those of one call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from gptrio.config.base import PretrainedConfig
from gptrio.errors import InputError, TokenIdError

CROP_MARGIN = 64  # extra positions that a sliding-window layer keeps, so that up to as many can be cropped
NO_LAYERS: Sequence[Any] = ()  # of a user's cache that stores keys and values in its own way
LegacyCache = tuple[tuple[Tensor, Tensor], ...]


class CacheLayer(ABC):
    """Keys and values of one layer.

    Attributes:
        is_compileable: whether a compiled graph may use this layer, which writes in place at `cache_position`.
        is_sliding: whether the layer stores the last positions only.
    """

    is_compileable = False
    is_sliding = False

    @property
    @abstractmethod
    def keys(self) -> Tensor | None:
        """(B, H, S, D), or None before the first update; a static layer returns its whole buffer."""

    @property
    @abstractmethod
    def values(self) -> Tensor | None:
        """(B, H, S, D), or None before the first update; a static layer returns its whole buffer."""

    def get_states(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the stored positions, oldest first, or None if there are none."""
        keys, values = self.keys, self.values
        return None if keys is None or values is None or not self.get_seq_length() else (keys, values)

    @abstractmethod
    def update(self, keys: Tensor, values: Tensor, cache_kwargs: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) and return all keys and values that this call's queries may attend to.

        Args:
            keys: (B, H, T, D).
            values: (B, H, T, D).
            cache_kwargs: `cache_position` (T,), the positions that a compileable layer writes to, or None.
        """

    def set_states(self, keys: Tensor, values: Tensor) -> None:
        """Store given keys and values (B, H, S, D) in an empty layer."""
        self.update(keys, values)

    @abstractmethod
    def get_seq_length(self) -> int:
        """Number of positions appended so far, including those that a sliding window has dropped."""

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Number of keys that an update returns, and the position of the first of them.

        Args:
            query_length: T of an update without `cache_position`, or the `cache_position` (T,) of one with it.
        """
        return self.get_seq_length() + num_queries(query_length), 0

    def key_positions(self, cache_position: Tensor) -> Tensor | None:
        """(S,) positions of the keys that an update at `cache_position` (T,) returns; None if they are consecutive.

        Empty slots have negative numbers.
        """
        return None

    def next_positions(self, length: int, device: torch.device) -> Tensor:
        """(length,) the next positions."""
        past = self.get_seq_length()
        return torch.arange(past, past + length, device=device)

    def get_max_cache_shape(self) -> int:
        """Capacity in positions, or -1 if there is no limit."""
        return -1

    def move_positions(self, order: Tensor, is_real: Tensor) -> None:
        """Permute the positions of each row: position s of row b becomes what `order[b, s]` (B, S) was.

        Args:
            order: old position of each new one; may be out of range where `is_real` is False.
            is_real: (B, S), False for padding, whose states do not matter; padding comes first in each row.

        Raises:
            InputError: the number of rows differs, or a sliding window has dropped a position that has to move.
        """
        pair, length = self.get_states(), self.get_seq_length()
        if pair is None:
            return
        count = pair[0].shape[2]
        own = order[:, -count:] - (length - count)
        if len(own) != len(pair[0]) or bool(((own < 0) & is_real[:, -count:]).any()):
            raise InputError(
                "padding stands between tokens that past_key_values hold, and they cannot be moved together: the cache "
                "has other rows, or a local layer has dropped some of them; pass the prompt without past_key_values"
            )
        index = own.clamp(0, count - 1)[:, None, :, None]
        moved = [states.gather(2, index.expand_as(states)) for states in pair]
        self.reset()
        self.set_states(*moved)
        if length > count:
            self.set_seq_length(length)

    def set_seq_length(self, length: int) -> None:
        """Set the number of positions appended so far; the stored ones become the last of them.

        Raises:
            InputError: this kind of layer does not support it.
        """
        raise InputError(
            f"the positions of a {type(self).__name__} that has dropped its oldest cannot be moved; pass the prompt "
            "without past_key_values, or a DynamicCache"
        )

    def without_window(self) -> CacheLayer:
        """An empty layer of this kind that stores the whole past."""
        return self

    def can_reserve(self, rows: int, heads: int, width: int, dtype: torch.dtype) -> bool:
        """Whether a compiled step may append (rows, heads, 1, width) itself (see `DynamicLayer.reserve`)."""
        return False

    def is_unchanged(self, keys: Tensor, values: Tensor, length: int) -> bool:
        """Whether the layer still has the buffers that `reserve` returned, and this length."""
        return False

    @abstractmethod
    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace keys and values by `function` of them, which acts on the batch axis only and makes new tensors."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace row `i` by row `beam_idx[i]` (B,)."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor | Sequence[int]) -> None:
        """Keep the rows `indices` (n,), in that order; a mask (B,) keeps those where it is true."""
        if isinstance(indices, Tensor) and indices.dtype == torch.long:
            self.map_batch(lambda states: states.index_select(0, indices.to(states.device)))
            return
        rows = indices if isinstance(indices, Tensor) else torch.tensor(list(indices), device="cpu")
        rows = rows if rows.dtype == torch.bool else rows.long()  # an empty list gives floats
        self.map_batch(lambda states: states[rows.to(states.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times, copies side by side."""
        self.map_batch(lambda states: states.repeat_interleave(repeats, dim=0))

    @abstractmethod
    def crop(self, max_length: int) -> None:
        """Remove all positions from `max_length` on; a negative number removes that many from the end."""

    @abstractmethod
    def reset(self) -> None:
        """Remove all positions."""


class ExtensibleClass:
    """An empty base: Python can change the bases of a class at run time only if it does not derive from `object`."""


class Cache(ExtensibleClass):
    """A list of layers with the operations of Transformers' `Cache`.

    Attributes:
        real_positions_last: whether `move_positions` has moved each row's padding before its real positions; the
            caller's attention mask keeps its own order, and `mask_in_order` reorders it.
        cross_attention_cache: keys and values of an encoder's states; None in a cache without them.
        is_updated: layer -> whether `cross_attention_cache` holds it.

    Args:
        layers: the first layers.
        layer_class_to_replicate: makes each further layer at its first use; None if there are no further ones.
    """

    layers: list[CacheLayer] = cast("list[CacheLayer]", NO_LAYERS)  # of a subclass that does not call `__init__`
    layer_class_to_replicate: Callable[[], CacheLayer] | None = None
    real_positions_last = False
    cross_attention_cache: Cache | None = None
    is_updated: dict[int, bool]

    def __init__(
        self, layers: Iterable[CacheLayer] = (), layer_class_to_replicate: Callable[[], CacheLayer] | None = None
    ) -> None:
        self.layers = list(layers)
        self.layer_class_to_replicate = layer_class_to_replicate

    def layer(self, layer_idx: int) -> CacheLayer:
        """Return the layer at `layer_idx`; make it if it does not exist yet.

        Raises:
            InputError: the cache was made for a model of fewer layers.
        """
        while len(self.layers) <= layer_idx:
            if self.layer_class_to_replicate is None:
                raise InputError(
                    f"past_key_values have {len(self.layers)} layers, but the model asks for layer {layer_idx}; make "
                    "the cache with the configuration of this model, whose num_hidden_layers counts all blocks"
                )
            self.layers.append(self.layer_class_to_replicate())
        return self.layers[layer_idx]

    @property
    def has_layers(self) -> bool:
        """Whether the cache is made of layers; a user's class may do without, and define what a model calls."""
        return self.layers is not NO_LAYERS

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) to a layer and return all keys and values that this call's queries may attend to.

        Args:
            key_states: (B, H, T, D).
            value_states: (B, H, T, D).
            layer_idx: index of the layer.
            cache_kwargs: `cache_position` (T,), the positions that a compileable layer writes to.
        """
        return self.layer(layer_idx).update(key_states, value_states, cache_kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of positions appended so far; those of the first layer that holds any where layer 0 holds none.

        Layer 0 stays empty in a model whose first block was removed, or has another part in place of its attention.
        """
        length = self.layers[layer_idx].get_seq_length() if layer_idx < len(self.layers) else 0
        if length or layer_idx:
            return length
        return next(filter(None, (layer.get_seq_length() for layer in self.layers[1:])), 0)

    def store_whole_past(self, layer_idx: int) -> None:
        """Let an empty layer with a window, of a model whose blocks were moved or removed, store all positions."""
        layer = self.layer(layer_idx) if self.has_layers else None
        if layer is not None and layer.is_sliding and not layer.get_seq_length():
            self.layers[layer_idx] = layer.without_window()

    def get_mask_sizes(self, query_length: int | Tensor, layer_idx: int = 0) -> tuple[int, int]:
        """Number of keys that an update returns, and the position of the first of them.

        Args:
            query_length: T of an update without `cache_position`, or the `cache_position` (T,) of one with it.
            layer_idx: index of the layer.
        """
        return self.layer(layer_idx).get_mask_sizes(query_length)

    def key_positions(self, cache_position: Tensor, layer_idx: int) -> Tensor | None:
        """(S,) positions of the keys of an update at `cache_position` (T,); None if they are consecutive."""
        return self.layer(layer_idx).key_positions(cache_position)

    def next_positions(self, length: int, device: torch.device) -> Tensor:
        """(length,) the next positions."""
        return self.layer(0).next_positions(length, device)

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Capacity in positions, or -1 if there is no limit."""
        return self.layer(layer_idx).get_max_cache_shape()

    @property
    def max_batch_size(self) -> int | None:
        """Rows of the first layer, or None while it is empty."""
        keys = self.layers[0].keys if self.layers else None
        return None if keys is None else keys.shape[0]

    @property
    def max_cache_len(self) -> int:
        """Largest capacity of a layer in positions, or -1 if there is no limit."""
        return max([-1, *[layer.get_max_cache_shape() for layer in self.layers]])

    @property
    def is_sliding(self) -> list[bool]:
        """For each layer, whether it stores the last positions only."""
        return [layer.is_sliding for layer in self.layers]

    @property
    def is_compileable(self) -> bool:
        """Whether a compiled graph may use this cache, which then writes in place at `cache_position`."""
        return bool(self.layers) and all(layer.is_compileable for layer in self.layers)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace row `i` by row `beam_idx[i]` (B,)."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor | Sequence[int]) -> None:
        """Keep the rows `indices` (n,), in that order; a mask (B,) keeps those where it is true."""
        for layer in self.layers:
            layer.batch_select_indices(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times, copies side by side."""
        for layer in self.layers:
            layer.batch_repeat_interleave(repeats)

    def move_positions(self, order: Tensor, is_real: Tensor) -> None:
        """Permute the positions of each row by `order` (B, S), so that padding comes first; see `CacheLayer`."""
        if not bool((order == torch.arange(order.shape[1], device=order.device)).all()):
            for layer in self.layers:
                layer.move_positions(order, is_real)
        self.real_positions_last = True

    def mask_in_order(self, attention_mask: Tensor) -> Tensor:
        """Return an attention mask (B, S) in the order of the cache's positions; columns after these stay in place."""
        if not self.real_positions_last:
            return attention_mask
        held = self.get_seq_length()
        return torch.cat([attention_mask[:, :held].sort(dim=-1).values, attention_mask[:, held:]], dim=1)

    def crop(self, max_length: int) -> None:
        """Remove all positions from `max_length` on; a negative number removes that many from the end."""
        for layer in self.layers:
            layer.crop(max_length)

    def reset(self) -> None:
        """Remove all positions from every layer."""
        self.real_positions_last = False
        for layer in self.layers:
            layer.reset()

    def to_legacy_cache(self) -> LegacyCache:
        """A tuple of (keys, values), each (B, H, S, D), of every layer that is not empty."""
        return tuple(pair for layer in self.layers if (pair := layer.get_states()) is not None)

    def __getitem__(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """(keys, values) of a layer, each (B, H, S, D).

        Raises:
            IndexError: there is no such layer, or it is empty.
        """
        layer = self.layers[layer_idx]
        keys, values = layer.keys, layer.values
        if keys is None or values is None:
            raise IndexError(f"layer {layer_idx} of the cache is empty")
        return keys, values

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(keys, values) of each layer that is not empty."""
        return (self[i] for i, layer in enumerate(self.layers) if layer.get_seq_length())

    def __len__(self) -> int:
        """Number of layers that are not empty."""
        return sum(layer.get_seq_length() > 0 for layer in self.layers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} layers, {self.get_seq_length()} positions)"


def real_positions_last(attention_mask: Tensor) -> Tensor:
    """(B, S) stable order of the columns of a mask (B, S) that puts padding first."""
    return attention_mask.to(torch.uint8).argsort(dim=-1, stable=True)


def cropped_length(max_length: int, length: int) -> int:
    """Number of positions that `crop(max_length)` leaves of `length`."""
    return min(max_length, length) if max_length >= 0 else max(length + max_length, 0)


def num_queries(query_length: int | Tensor) -> int:
    """T, from T itself or from the positions (T,)."""
    return query_length if isinstance(query_length, int) else query_length.shape[0]


def check_capacity(end: int, capacity: int) -> None:
    """Raise TokenIdError if `end` positions exceed the capacity of a cache of a fixed size."""
    if end > capacity:
        raise TokenIdError(
            f"the sequence has {end} positions, but the cache was made for {capacity}; make it with "
            f"max_cache_len={end} or more, or use a dynamic one"
        )


def windows_of(config: PretrainedConfig) -> list[int | None]:
    """For each layer, how many positions a query attends to, its own included; None for all."""
    windows: list[int | None] | None = getattr(config, "layer_windows", None)
    return [None] * config.num_hidden_layers if windows is None else list(windows)


def concat(past: Tensor | None, new: Tensor) -> Tensor:
    """Concatenate past positions (B, H, S, D), if there are any, and new ones (B, H, T, D)."""
    return new if past is None else torch.cat([past, new], dim=-2)


def check_fit(held: Tensor | None, new: Tensor) -> None:
    """Raise InputError unless `new` (B, H, T, D) can be appended to `held` (B, H, S, D)."""
    if held is not None and (held.shape[:2] != new.shape[:2] or held.shape[3] != new.shape[3]):
        raise InputError(
            f"past_key_values hold (batch, heads, _, head width) = {(*held.shape[:2], held.shape[3])}, but this call "
            f"has {(*new.shape[:2], new.shape[3])}; pass the cache that this model made for this batch"
        )
