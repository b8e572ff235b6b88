"""Functions that make the masks of registered attention functions, by name, as Transformers' models call them.

A mask function says of (batch, head, query, key) indices, which broadcast, whether the query attends to the key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.nn import flash
from gptrio.nn.attention_interface import Function, GeneralInterface
from gptrio.nn.masks import AttentionMask

MaskFunction = Callable[[Any, Any, Any, Any], Any]


def and_masks(*mask_functions: MaskFunction) -> MaskFunction:
    """The mask function that holds where all of these do."""

    def and_mask(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> Any:
        result = q_idx.new_ones((), dtype=torch.bool)
        for function in mask_functions:
            result = result & function(batch_idx, head_idx, q_idx, kv_idx)
        return result

    return and_mask


def or_masks(*mask_functions: MaskFunction) -> MaskFunction:
    """The mask function that holds where one of these does."""

    def or_mask(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> Any:
        result = q_idx.new_zeros((), dtype=torch.bool)
        for function in mask_functions:
            result = result | function(batch_idx, head_idx, q_idx, kv_idx)
        return result

    return or_mask


def causal_mask_function(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> Any:
    """A query sees no later position."""
    return kv_idx <= q_idx


def sliding_window_overlay(sliding_window: int) -> MaskFunction:
    """The mask function of a window alone, the query's own position included."""
    return lambda batch_idx, head_idx, q_idx, kv_idx: kv_idx > q_idx - sliding_window


def sliding_window_causal_mask_function(sliding_window: int) -> MaskFunction:
    """The mask function of a window that ends with the query's own position."""
    return and_masks(sliding_window_overlay(sliding_window), causal_mask_function)


def padding_mask_function(padding_mask: Tensor) -> MaskFunction:
    """The mask function of (B, positions), True for real tokens."""
    return lambda batch_idx, head_idx, q_idx, kv_idx: padding_mask[batch_idx, kv_idx]


def packed_sequence_mask_function(packed_sequence_mask: Tensor) -> MaskFunction:
    """The mask function of (B, T), the number of the sequence that each token belongs to."""
    packed = packed_sequence_mask
    return lambda batch_idx, head_idx, q_idx, kv_idx: packed[batch_idx, q_idx] == packed[batch_idx, kv_idx]


def sdpa_mask(
    batch_size: int,
    cache_position: Tensor,
    kv_length: int,
    kv_offset: int = 0,
    mask_function: MaskFunction = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> Tensor | None:
    """(B, 1, T, S) bool, True where a query attends; None where sdpa's own `is_causal` says the same.

    Args:
        batch_size: B.
        cache_position: (T,) positions of the queries.
        kv_length: S.
        kv_offset: position of the first key.
        mask_function: which keys a query sees.
        attention_mask: (B, positions) bool, True for real tokens; None if all are.
        local_size: the window, if there is one.
        allow_is_causal_skip: None may be returned.
        kwargs: what else is passed, unused.
    """
    if attention_mask is not None:
        missing = kv_offset + kv_length - attention_mask.shape[-1]
        attention_mask = F.pad(attention_mask, (0, missing)) if missing > 0 else attention_mask
    queries = len(cache_position)
    if allow_is_causal_skip and queries in (1, kv_length) and (local_size is None or kv_length < local_size):
        seen = None if attention_mask is None else attention_mask[:, kv_offset : kv_offset + kv_length]
        if seen is None or bool(seen.all()):
            return None
    if attention_mask is not None:
        mask_function = and_masks(mask_function, padding_mask_function(attention_mask))
    device = cache_position.device
    rows = torch.arange(batch_size, device=device)[:, None, None, None]
    heads = torch.arange(1, device=device)[:, None, None]
    keys = torch.arange(kv_offset, kv_offset + kv_length, device=device)
    mask = mask_function(rows, heads, cache_position[:, None], keys)
    return cast(Tensor, mask.expand(batch_size, 1, queries, kv_length))


def eager_mask(
    batch_size: int,
    cache_position: Tensor,
    kv_length: int,
    kv_offset: int = 0,
    mask_function: MaskFunction = causal_mask_function,
    attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> Tensor:
    """(B, 1, T, S) to add to the scores: 0 where a query attends, else the least value of `dtype`; see `sdpa_mask`."""
    kwargs["allow_is_causal_skip"] = False
    mask = sdpa_mask(batch_size, cache_position, kv_length, kv_offset, mask_function, attention_mask, **kwargs)
    zero = torch.zeros((), dtype=dtype, device=cache_position.device)
    return zero.masked_fill(~cast(Tensor, mask), torch.finfo(dtype).min)


def flash_attention_mask(
    batch_size: int,
    cache_position: Tensor,
    kv_length: int,
    kv_offset: int = 0,
    mask_function: MaskFunction = causal_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """(B, S) bool, True for real tokens; None if all are. See `sdpa_mask`."""
    seen = None if attention_mask is None else attention_mask[:, -kv_length:]
    return None if seen is None or bool(seen.all()) else seen


class AttentionMaskInterface(GeneralInterface):
    """The functions that make the masks of the attention functions of the same names; see `AttentionInterface`.

    Each is called as `function(batch_size=..., cache_position=..., kv_length=..., kv_offset=..., mask_function=...,
    attention_mask=..., allow_is_causal_skip=..., dtype=..., config=...)`, with `local_size` for layers with a window.
    """

    _global_mapping: ClassVar[dict[str, Function]] = {
        "sdpa": sdpa_mask,
        "eager": eager_mask,
        flash.NAME: flash_attention_mask,
    }


ALL_MASK_ATTENTION_FUNCTIONS = AttentionMaskInterface()


def mask_for(name: str, q: Tensor, mask: AttentionMask, layer: Any) -> Any:
    """The mask that a registered attention function is called with, made once for all layers that share it.

    Args:
        name: of the attention function.
        q: queries (B, H, T, D).
        mask: what each query may attend to.
        layer: the attention layer.
    """
    function = ALL_MASK_ATTENTION_FUNCTIONS.get(name)
    if getattr(layer, "is_cross_attention", False):
        return mask.additive(q.dtype)
    if mask.custom is not None:
        return mask.custom
    if function is None:
        return None if mask.is_square_causal or mask.is_unmasked else mask.additive(q.dtype)
    known = (name, q.dtype)
    if known not in mask.memo:
        mask.memo[known] = function(
            batch_size=q.shape[0], dtype=q.dtype, config=getattr(layer, "config", None), **_described(mask)
        )
    return mask.memo[known]


def _described(mask: AttentionMask) -> dict[str, Any]:
    """What a mask is made of, as arguments of a function that makes one."""
    positions = mask.positions
    if positions is None:
        positions = torch.arange(mask.query_start, mask.query_start + mask.query_length, device=mask.device)
    window = {} if mask.window is None else {"local_size": mask.window}
    function = sliding_window_causal_mask_function(mask.window) if mask.window is not None else causal_mask_function
    if mask.segments is not None:
        function = and_masks(function, packed_sequence_mask_function(mask.segments))
    offset, real, slots = mask.key_offset, mask.attention_mask, mask.key_positions
    if slots is not None:  # keys that do not follow each other are described by their slots
        offset, real, function = 0, mask.real_keys(), _by_slot(function, slots)
    return {
        "cache_position": positions,
        "kv_length": mask.key_length,
        "kv_offset": offset,
        "mask_function": function,
        "attention_mask": real,
        "allow_is_causal_skip": mask.positions is None and mask.segments is None,
        **window,
    }


def _by_slot(function: MaskFunction, slots: Tensor) -> MaskFunction:
    """A mask function of slots (S,) that hold positions, negative where they are empty."""

    def of_slots(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (slots[kv_idx] >= 0) & function(batch_idx, head_idx, q_idx, slots[kv_idx])

    return of_slots
