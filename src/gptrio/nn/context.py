"""What a block may ask of the forward that it is part of, and the answers for a rectangular batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptrio.errors import InputError
from gptrio.nn.attention import AttentionOptions, Drop, attention
from gptrio.nn.fast_call import is_dispatch_skipped
from gptrio.nn.masks import AttentionMask, is_exporting
from gptrio.nn.rotary import RotaryTables

KeysAndValues = Callable[[Tensor], tuple[Tensor, Tensor]]
LAST_POSITION = slice(-1, None)


class KeyValueStore(Protocol):
    """The part of the cache protocol that a layer uses."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append and return everything this call's queries may see."""
        ...

    @property
    def has_layers(self) -> bool:
        """Whether the sizes and positions of its layers can be asked for."""
        ...

    def store_whole_past(self, layer_idx: int) -> None:
        """Let an empty layer with a window store all positions."""
        ...

    def get_mask_sizes(self, query_length: int | Tensor, layer_idx: int = 0) -> tuple[int, int]:
        """Number of keys an update returns, and the position of the first."""
        ...

    def key_positions(self, cache_position: Tensor, layer_idx: int) -> Tensor | None:
        """Positions of the keys an update returns, where they do not follow each other."""
        ...

    def __getitem__(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer."""
        ...


@dataclass
class CrossAttention:
    """The encoder's side of a forward.

    Attributes:
        states: (B, S, C).
        mask: which of the S states a query sees.
        cache: keys and values of the states, or None.
        filled: layers whose keys and values the cache already holds.
    """

    states: Tensor
    mask: AttentionMask
    cache: KeyValueStore | None = None
    filled: dict[int, bool] = field(default_factory=dict)

    def to(self, device: torch.device, non_blocking: bool = False) -> CrossAttention:
        """The same side on another device; `filled` stays shared, as the cache does."""
        states = self.states.to(device, non_blocking=non_blocking)
        return replace(self, states=states, mask=self.mask.to(device, non_blocking))


class AttentionContext(Protocol):
    """What a block may ask of the forward that it is part of. Families use these members and no others.

    `DenseContext` answers for rectangular batches over one cache. Another layout (rows of different lengths laid end to
    end, keys and values in pages) is another class with these members, which `Backbone.run_blocks` takes for every
    family. So is an observer: queries, keys, values and attention's result pass through `attend`, and the other named
    activations of a block are inputs and outputs of modules, which hooks see: the input and the output of the block and
    of its norms, attention's output, and the MLP's layers (see `Block.spec`).

    Attributes:
        cache: holds keys and values of the past, or None; a block that stores nothing can be computed again.
        need_weights: blocks return their attention weights.
        rotary: cosine and sine tables of the positions, or None.
        cross: the encoder's side, or None.
    """

    cache: Any
    need_weights: bool
    rotary: RotaryTables | None
    cross: CrossAttention | None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layer_idx: int, options: AttentionOptions
    ) -> tuple[Tensor, Tensor | None]:
        """Store the new keys and values of a layer, and attend to all that its queries may see.

        Args:
            q: queries (B, H, T, D).
            k: new keys (B, H, T, D).
            v: new values (B, H, T, D).
            layer_idx: index of the layer.
            options: of the layer.

        Returns:
            The result (B, T', H * D) for the T' selected positions, and the weights (B, H, T', S) or None.
        """
        ...

    def attend_to_encoder(
        self, q: Tensor, keys_and_values: KeysAndValues, layer_idx: int, options: AttentionOptions
    ) -> tuple[Tensor, Tensor | None]:
        """Cross-attention of a layer to the encoder's states.

        Args:
            q: queries (B, H, T, D).
            keys_and_values: maps the states (B, S, C) to keys and values, each (B, H, S, D); called once per cache.
            layer_idx: index of the layer.
            options: of the layer.

        Returns:
            The result (B, T, H * D), and the weights (B, H, T, S) or None.
        """
        ...

    def select(self, x: Tensor) -> Tensor:
        """Of (..., T, C), the T' positions whose output is needed: all of them, except in the last block."""
        ...


@dataclass
class DenseContext:
    """The `AttentionContext` of a rectangular batch, whose rows share one length.

    Attributes:
        mask: what a query may attend to, in a layer that holds the whole past; its queries are the selected ones.
        implementation: attention back end.
        need_weights: blocks return their attention weights.
        cache: past keys and values, or None.
        head_mask: (L, ...) each broadcastable to (B, H, T, S), or None.
        rotary: cosine and sine tables, each (B or 1, 1, T, 1, R), or None.
        cross: the encoder's side, or None.
        selected: positions whose output is needed, a slice or indices (T',); None for all. Keys and values of all
            positions are stored.
        written: layers of the cache that blocks have written to in this forward.
    """

    mask: AttentionMask
    implementation: str
    need_weights: bool = False
    cache: KeyValueStore | None = None
    head_mask: Tensor | None = None
    rotary: RotaryTables | None = None
    cross: CrossAttention | None = None
    selected: slice | Tensor | None = None
    written: set[int] = field(default_factory=set)
    _masks: list[tuple[tuple[int, int, int | None], AttentionMask]] = field(default_factory=list)
    _copies: dict[torch.device, DenseContext] = field(default_factory=dict)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> DenseContext:
        """The same forward for layers on another device; all layers there share one context.

        Masks, rotary tables, head masks and the encoder's states are moved; the cache is shared, as each layer's keys
        and values lie where that layer has computed them. accelerate calls this where it moves a layer's arguments.

        Args:
            device: where the layer computes.
            non_blocking: as for `Tensor.to`.
        """
        device = torch.empty(0, device=device).device  # with its index
        if device == torch.empty(0, device=self.mask.device).device:
            return self

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        if device not in self._copies:
            self._copies[device] = replace(
                self,
                mask=self.mask.to(device, non_blocking),
                head_mask=None if self.head_mask is None else moved(self.head_mask),
                rotary=None if self.rotary is None else (moved(self.rotary[0]), moved(self.rotary[1])),
                cross=None if self.cross is None else self.cross.to(device, non_blocking),
                selected=moved(self.selected) if isinstance(self.selected, Tensor) else self.selected,
                _masks=[],
                _copies={},
            )
        return self._copies[device]

    def select(self, x: Tensor) -> Tensor:
        """See `AttentionContext.select`."""
        return x if self.selected is None else x[..., self.selected, :]

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layer_idx: int, options: AttentionOptions
    ) -> tuple[Tensor, Tensor | None]:
        """See `AttentionContext.attend`."""
        if self.cache is not None and options.window is None:
            self.cache.store_whole_past(layer_idx)
        mask = self.mask_for_layer(layer_idx, options.window, k.shape[2])
        if self.cache is not None:
            self._note_layer(layer_idx)
            k, v = self.cache.update(k, v, layer_idx, {"cache_position": self.mask.positions})
        if k.shape[2] > mask.key_length:  # the cache holds more than the window
            k, v = k[:, :, -mask.key_length :], v[:, :, -mask.key_length :]
        elif k.shape[2] < mask.key_length and not is_exporting():  # a user's cache has dropped some
            lost = mask.key_length - k.shape[2]
            mask = mask.for_layer(k.shape[2], mask.key_offset + lost, options.window)
        options = self._with_weights(options)
        if mask.key_offset and options.need_weights and options.drop is not None:
            options = options._replace(drop=_over_all_keys(options.drop, mask.key_offset))
        head_mask = None if self.head_mask is None else self.head_mask[layer_idx]
        out, weights = attention(self.select(q), k, v, mask, options, head_mask, self.implementation)
        if weights is not None and mask.key_offset:
            weights = F.pad(weights, (mask.key_offset, 0))  # positions that the window has left behind
        return out, weights

    def attend_to_encoder(
        self, q: Tensor, keys_and_values: KeysAndValues, layer_idx: int, options: AttentionOptions
    ) -> tuple[Tensor, Tensor | None]:
        """See `AttentionContext.attend_to_encoder`."""
        cross = self.cross
        assert cross is not None
        if cross.cache is not None and cross.filled.get(layer_idx):
            k, v = cross.cache[layer_idx]
        else:
            k, v = keys_and_values(cross.states)
            if cross.cache is not None:
                k, v = cross.cache.update(k, v, layer_idx)
                cross.filled[layer_idx] = True
        head_mask = None if self.head_mask is None else self.head_mask[layer_idx]
        return attention(q, k, v, cross.mask, self._with_weights(options), head_mask, self.implementation)

    def _note_layer(self, layer_idx: int) -> None:
        """Raise InputError if another block has written to this layer of the cache in the same forward."""
        if layer_idx in self.written:
            raise InputError(
                f"two blocks write to layer {layer_idx} of the cache; set the layer_idx of the attention of a copied "
                "or moved block to its place among the blocks, or pass use_cache=False"
            )
        self.written.add(layer_idx)

    def _with_weights(self, options: AttentionOptions) -> AttentionOptions:
        """The options, with weights if the call needs them; eager layers always return them, as the reference's do."""
        if self.need_weights or (self.implementation == "eager" and not is_dispatch_skipped()):
            return options._replace(need_weights=True)
        return options

    def mask_for_layer(self, layer_idx: int, window: int | None, new_keys: int) -> AttentionMask:
        """The mask for a layer's own keys; layers with the same number and positions of keys share one.

        Args:
            layer_idx: index of the layer.
            window: most positions a query sees, itself included; None for all.
            new_keys: keys of this forward, which the cache does not hold yet.
        """
        length, offset, positions = self.mask.key_length, self.mask.key_offset, self.mask.positions
        if self.cache is not None and self.cache.has_layers:
            length, offset = self.cache.get_mask_sizes(new_keys if positions is None else positions, layer_idx)
        if (length, offset, window) == (self.mask.key_length, self.mask.key_offset, self.mask.window):
            return self.mask
        geometry = (length, offset, window)
        for known, mask in self._masks:  # a list, as numbers of an exported graph have no hash
            if known == geometry:
                return mask
        keys = None
        if self.cache is not None and self.cache.has_layers and positions is not None:
            keys = self.cache.key_positions(positions, layer_idx)
        self._masks.append((geometry, self.mask.for_layer(length, offset, window, keys)))
        return self._masks[-1][1]


def with_weights_for_hooks(part: nn.Module, context: AttentionContext) -> AttentionContext:
    """The context, which asks for attention weights if hooks of a part see the weights among what it returns."""
    if context.need_weights or not part._forward_hooks or not isinstance(context, DenseContext):
        return context
    return replace(context, need_weights=True)


def _over_all_keys(drop: Drop, offset: int) -> Drop:
    """`drop` for weights (..., S - offset), called with all S of them: the first `offset` are outside the window."""
    return lambda weights: drop(F.pad(weights, (offset, 0)))[..., offset:]
