"""Blocks and attentions called by code of a user, with the arguments that those of Transformers take."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, nn

from gptrio.cache import Cache
from gptrio.cache.transformers import as_own_cache
from gptrio.errors import UnsupportedError
from gptrio.models.base.inputs import written_positions
from gptrio.models.base.signatures import set_forward
from gptrio.nn.blocks import MultiHeadAttention
from gptrio.nn.context import AttentionContext, CrossAttention, DenseContext
from gptrio.nn.masks import AttentionMask

PartClass = TypeVar("PartClass", bound=type[nn.Module])
_CACHES = ("past_key_values", "layer_past", "past_key_value")


def takes_reference_arguments(order: str, *, mask_is_causal: bool = True) -> Callable[[PartClass], PartClass]:
    """Decorate a block or an attention whose forward takes (x, context), so that it also runs on its own.

    What a caller gives by the names of Transformers counts before what the context says of it: the mask of a wrapper
    that knocks edges out, the cache of a loop over the blocks. `inspect.signature` shows these names.

    Args:
        order: the names after `hidden_states`, in Transformers' positional order.
        mask_is_causal: the causal mask also applies where the caller passes a mask.
    """
    names = tuple(order.split())

    def decorate(cls: PartClass) -> PartClass:
        shared: Callable[..., Any] = cls.forward

        @functools.wraps(shared)
        def forward(self: nn.Module, hidden_states: Tensor, context: Any = None, *args: Any, **given: Any) -> Any:
            if given or args or not hasattr(context, "attend"):
                if context is not None and not hasattr(context, "attend"):
                    args, context = (context, *args), None
                given.update(zip(names, args, strict=False))
                context = _context(self, hidden_states, context, given, mask_is_causal)
            return shared(self, hidden_states, context)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        shown = [inspect.Parameter(name, kind, default=None) for name in ("context", *names)]
        first = [inspect.Parameter("self", kind), inspect.Parameter("hidden_states", kind)]
        rest = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
        set_forward(cls, forward, inspect.Signature([*first, *shown, rest]))
        return cls

    return decorate


def _context(
    part: nn.Module, x: Tensor, context: AttentionContext | None, given: dict[str, Any], mask_is_causal: bool
) -> AttentionContext:
    """The context of a forward, or a plain one, with what the caller has given in place of what it says."""
    if context is not None and not isinstance(context, DenseContext):
        if any(value is not None for value in given.values()):
            raise UnsupportedError(f"packed rows take no {', '.join(given)} for a single part of the model")
        return context
    attention = next((each for each in part.modules() if isinstance(each, MultiHeadAttention)), None)
    layer_idx = 0 if attention is None else attention.layer_idx
    named = [given[name] for name in _CACHES if name in given]
    cache = as_own_cache(next((each for each in named if each is not None), None)) if named or context is None else None
    if context is None:
        config: Any = getattr(attention, "config", None)
        mask = _plain_mask(x, cache, given.get("cache_position"), layer_idx, mask_is_causal)
        context = DenseContext(mask, getattr(config, "_attn_implementation", None) or "sdpa", cache=cache)
    elif named and cache is not context.cache:
        mask = _plain_mask(x, cache, given.get("cache_position"), layer_idx, mask_is_causal)
        context = replace(context, mask=mask, cache=cache, _masks=[], _copies={})
    changes = {**_mask_given(context, given, mask_is_causal), **_others_given(context, given, layer_idx)}
    return replace(context, **changes, _masks=[], _copies={}) if changes else context


def _plain_mask(
    x: Tensor, cache: Cache | None, cache_position: Tensor | None, layer_idx: int, mask_is_causal: bool
) -> AttentionMask:
    """The causal mask of tokens (B, T, C) after those that a layer of the cache holds."""
    length = x.shape[1]
    positions = written_positions(cache, cache_position, length, x.device)
    holds = cache is not None and positions is None and layer_idx < len(cache.layers)
    past = cache.layers[layer_idx].get_seq_length() if cache is not None and holds else 0
    keys = past + length if cache is None or positions is None else cache.max_cache_len
    return AttentionMask(length, keys, x.device, past, mask_fully_padded_rows=mask_is_causal, positions=positions)


def _mask_given(context: DenseContext, given: dict[str, Any], mask_is_causal: bool) -> dict[str, Any]:
    """The mask as it becomes by an `attention_mask`, unless this is the one that the context gives."""
    bias, mask = given.get("attention_mask"), context.mask
    if "attention_mask" not in given or (bias is None and mask.is_causal_only):
        return {}
    if bias is None:
        return {"mask": replace(mask, custom=None, attention_mask=None, segments=None, causal=True, memo={})}
    if bias is mask.memo.get(bias.dtype):
        return {}
    custom = bias.reshape(*[1] * (4 - bias.dim()), *bias.shape)[..., : mask.key_length]
    return {"mask": replace(mask, custom=custom, attention_mask=None, segments=None, causal=mask_is_causal, memo={})}


def _others_given(context: DenseContext, given: dict[str, Any], layer_idx: int) -> dict[str, Any]:
    """Rotary tables, weights, the head mask of the layer, and the encoder's side."""
    changes: dict[str, Any] = {}
    if given.get("position_embeddings") is not None:
        cos, sin = given["position_embeddings"]  # (B or 1, T, R)
        changes["rotary"] = (cos[:, None, :, None], sin[:, None, :, None])
    if given.get("output_attentions") and not context.need_weights:
        changes["need_weights"] = True
    if (head_mask := given.get("head_mask")) is not None:
        changes["head_mask"] = head_mask.unsqueeze(0).expand(layer_idx + 1, *head_mask.shape)
    states = given.get("encoder_hidden_states")
    if states is not None and (context.cross is None or states is not context.cross.states):
        queries = context.mask.query_length
        visible = AttentionMask(queries, states.shape[1], states.device, causal=False)
        visible.custom = given.get("encoder_attention_mask")  # (B or 1, H or 1, T or 1, S)
        changes["cross"] = CrossAttention(states, visible)
    return changes
