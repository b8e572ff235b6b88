"""What one forward tells each of its layers: the past, what may be seen, and how to attend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.nn.attention import Drop, attention
from gptrio.nn.masks import AttentionMask


class KeyValueStore(Protocol):
    """The part of the cache protocol that a layer uses."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append and return everything this call's queries may see."""
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


class AttentionOptions(NamedTuple):
    """How a layer attends; see `gptrio.nn.attention.attention`.

    Attributes:
        scale: factor of the scores.
        window: most positions a query sees, itself included; None for all.
        dropout: probability of dropping a weight; 0 outside training.
        float32_scores: take scores in float32 whatever the dtype.
        drop: what drops weights where they are at hand; None for torch's function.
        need_weights: return weights even if the context needs none.
    """

    scale: float
    window: int | None = None
    dropout: float = 0.0
    float32_scores: bool = False
    drop: Drop | None = None
    need_weights: bool = False


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


@dataclass
class AttentionContext:
    """One forward, as its layers see it.

    Attributes:
        mask: what a query may attend to, for a layer that holds the whole past.
        implementation: attention back end.
        need_weights: layers return their attention weights.
        cache: past keys and values, or None.
        head_mask: (L, ...) each broadcastable to (B, H, T, S), or None.
        rotary: cosine and sine tables, each (B or 1, 1, T, 1, R), or None.
        cross: the encoder's side, or None.
        last_only: nothing but the last position's result is wanted of the layer; its keys and values are those of all.
    """

    mask: AttentionMask
    implementation: str
    need_weights: bool = False
    cache: KeyValueStore | None = None
    head_mask: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    cross: CrossAttention | None = None
    last_only: bool = False
    _masks: list[tuple[tuple[int, int, int | None], AttentionMask]] = field(default_factory=list)
    _elsewhere: dict[torch.device, AttentionContext] = field(default_factory=dict)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> AttentionContext:
        """The same forward for layers on another device, whose context is made once and shared by them.

        Masks, rotary tables, head masks and the encoder's states go there; the cache is the same, as each layer's keys
        and values lie where that layer has computed them. accelerate calls this where it moves a layer's arguments.

        Args:
            device: where the layer computes.
            non_blocking: as for `Tensor.to`.
        """
        device = torch.empty(0, device=device).device  # with its index
        if device == torch.empty(0, device=self.mask.device).device:
            return self
        if device not in self._elsewhere:
            heads, rotary, cross = self.head_mask, self.rotary, self.cross
            if rotary is not None:
                rotary = (
                    rotary[0].to(device, non_blocking=non_blocking),
                    rotary[1].to(device, non_blocking=non_blocking),
                )
            self._elsewhere[device] = replace(
                self,
                mask=self.mask.to(device, non_blocking),
                head_mask=None if heads is None else heads.to(device, non_blocking=non_blocking),
                rotary=rotary,
                cross=None if cross is None else cross.to(device, non_blocking),
                _masks=[],
                _elsewhere={},
            )
        return self._elsewhere[device]

    def wanted(self, x: Tensor) -> Tensor:
        """Of one vector for each position (..., T, C), those of the positions whose results are wanted."""
        return x[..., -1:, :] if self.last_only else x

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: int, options: AttentionOptions
    ) -> tuple[Tensor, Tensor | None]:
        """Causal self-attention of layer `layer` over its past and the new keys and values.

        Args:
            q: queries (B, H, T, D).
            k: new keys (B, H, T, D).
            v: new values (B, H, T, D).
            layer: index of the layer.
            options: of the layer.

        Returns:
            The result (B, T, H * D) of the wanted positions, and the weights (B, H, T, S) if they are needed.
        """
        mask = self._mask_of(layer, options.window, k.shape[2])
        if self.cache is not None:
            k, v = self.cache.update(k, v, layer, {"cache_position": self.mask.positions})
        if k.shape[2] > mask.key_length:  # the cache holds more than the window
            k, v = k[:, :, -mask.key_length :], v[:, :, -mask.key_length :]
        if mask.key_offset and options.need_weights and options.drop is not None:
            options = options._replace(drop=_over_all_keys(options.drop, mask.key_offset))
        out, weights = self._attention(self.wanted(q), k, v, mask, layer, options)
        if weights is not None and mask.key_offset:
            weights = F.pad(weights, (mask.key_offset, 0))  # positions that the window has left behind
        return out, weights

    def _mask_of(self, layer: int, window: int | None, new_keys: int) -> AttentionMask:
        """The mask for a layer's own keys, so many of them new; layers of the same geometry share one."""
        length, offset, positions = self.mask.key_length, self.mask.key_offset, self.mask.positions
        if self.cache is not None:
            length, offset = self.cache.get_mask_sizes(new_keys if positions is None else positions, layer)
        if (length, offset, window) == (self.mask.key_length, self.mask.key_offset, self.mask.window):
            return self.mask
        geometry = (length, offset, window)
        for known, mask in self._masks:  # a list, as numbers of an exported graph have no hash
            if known == geometry:
                return mask
        keys = None
        if self.cache is not None and positions is not None:
            keys = self.cache.key_positions(positions, layer)
        self._masks.append((geometry, self.mask.over(length, offset, window, keys)))
        return self._masks[-1][1]

    def attend_to_encoder(
        self,
        q: Tensor,
        keys_and_values: Callable[[Tensor], tuple[Tensor, Tensor]],
        layer: int,
        options: AttentionOptions,
    ) -> tuple[Tensor, Tensor | None]:
        """Cross-attention of layer `layer` to the encoder's states.

        Args:
            q: queries (B, H, T, D).
            keys_and_values: maps the states (B, S, C) to keys and values, each (B, H, S, D); called once per cache.
            layer: index of the layer.
            options: of the layer.
        """
        cross = self.cross
        assert cross is not None
        if cross.cache is not None and cross.filled.get(layer):
            k, v = cross.cache[layer]
        else:
            k, v = keys_and_values(cross.states)
            if cross.cache is not None:
                k, v = cross.cache.update(k, v, layer)
                cross.filled[layer] = True
        return self._attention(q, k, v, cross.mask, layer, options)

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, layer: int, options: AttentionOptions
    ) -> tuple[Tensor, Tensor | None]:
        return attention(
            q,
            k,
            v,
            mask,
            scale=options.scale,
            dropout=options.dropout,
            head_mask=None if self.head_mask is None else self.head_mask[layer],
            float32_scores=options.float32_scores,
            implementation=self.implementation,
            need_weights=self.need_weights or options.need_weights,
            drop=options.drop,
        )


def _over_all_keys(drop: Drop, offset: int) -> Drop:
    """`drop` for weights (..., S - offset), shown all S of them: the first are those of keys that a window hides."""
    return lambda weights: drop(F.pad(weights, (offset, 0)))[..., offset:]
