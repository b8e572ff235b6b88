"""Calls of the blocks of a model and of their attentions, also where a user has put a module of another class.

Such a module is written with the arguments that Transformers gives it, hands on all that it gets, or does both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gptrio.errors import UnsupportedError
from gptrio.nn.context import AttentionContext, DenseContext


def call_part(part: nn.Module, x: Tensor, context: AttentionContext) -> Any:
    """What a block or an attention makes of its input.

    A module whose forward names arguments of Transformers gets those; one that takes any keywords, or has hooks that
    see them, gets all of them, `context` included. Every other one gets the context by position.

    Args:
        part: the module.
        x: (B, T, C).
        context: what it attends to.

    Returns:
        A tuple whose first element is (B, T', C) at the selected positions.
    """
    if type(part).__module__.startswith("gptrio.") and "forward" not in part.__dict__:
        if not (part._forward_hooks_with_kwargs or part._forward_pre_hooks_with_kwargs):
            return part(x, context)
        keywords: dict[str, Any] | None = _all_keywords(x, context)
    else:
        keywords = _keywords(part.forward, x, context)
    out = part(x, context) if keywords is None else part(x, **keywords)
    is_whole = isinstance(out, tuple) and isinstance(out[0], Tensor) and out[0].shape[-2:-1] == x.shape[-2:-1]
    return (context.select(out[0]), *out[1:]) if is_whole and x.shape[-2] > 1 else out


def _keywords(forward: Callable[..., Any], x: Tensor, context: AttentionContext) -> dict[str, Any] | None:
    """Arguments by name for a forward; None for one that takes the context by position."""
    try:
        _, *others = inspect.signature(forward).parameters.values()
    except ValueError:  # takes nothing, or says nothing
        return None
    names = [each.name for each in others if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    kinds = {each.kind for each in others}
    named = [name for name in names if name in _ARGUMENTS]
    takes_rest = inspect.Parameter.VAR_KEYWORD in kinds
    is_ours = names[:1] == ["context"] or names[:2] == ["hidden_states", "context"]  # with self, in a wrapper
    if inspect.Parameter.VAR_POSITIONAL in kinds or not (named or takes_rest) or is_ours:
        return None
    rest = _all_keywords(x, context) if takes_rest else {"context": context} if "context" in names else {}
    return {**rest, **_values(named, x, context)}


def _all_keywords(x: Tensor, context: AttentionContext) -> dict[str, Any]:
    """The context, and what Transformers gives to every block: for code that reads one keyword and hands all on."""
    if not isinstance(context, DenseContext):
        return {"context": context}
    names = ["attention_mask", "cache_position", "head_mask", "output_attentions", "position_ids", "use_cache"]
    names += ["position_embeddings"] if context.rotary is not None else []
    names += ["encoder_hidden_states", "encoder_attention_mask"] if context.cross is not None else []
    caches = {"layer_past": context.cache, "past_key_values": context.cache}
    return {"context": context, **caches, **_values(names, x, context)}


def _values(names: Sequence[str], x: Tensor, context: AttentionContext) -> dict[str, Any]:
    if names and not isinstance(context, DenseContext):
        raise UnsupportedError(
            f"a module in place of a part of the model takes {', '.join(names)}, which packed rows do not have; let "
            "its forward take (x, context), or only hand on **kwargs"
        )
    return {name: _ARGUMENTS[name](x, context) for name in names}


def _columns(x: Tensor, context: DenseContext) -> Tensor:
    """(T,) positions of the new tokens."""
    if context.mask.positions is not None:
        return context.mask.positions
    end = context.mask.query_start + context.mask.query_length
    return torch.arange(end - x.shape[-2], end, device=x.device)


def _rotary(x: Tensor, context: DenseContext) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines (B or 1, T, R)."""
    return None if context.rotary is None else (context.rotary[0][:, 0, :, 0], context.rotary[1][:, 0, :, 0])


def _past(x: Tensor, context: DenseContext) -> Any:
    """The cache, which keeps the positions beyond a window, too: only the family's own attention has one."""
    cache: Any = context.cache
    if hasattr(cache, "lift_windows"):
        cache.lift_windows()
    return cache


def _none(x: Tensor, context: DenseContext) -> None:
    return None


# what Transformers' blocks and attentions take
_ARGUMENTS: dict[str, Callable[[Tensor, Any], Any]] = {
    "attention_mask": lambda x, context: context.mask.additive(x.dtype),
    "cache_position": _columns,
    "encoder_attention_mask": _none,
    "encoder_hidden_states": lambda x, context: None if context.cross is None else context.cross.states,
    "head_mask": _none,
    "layer_past": _past,
    "output_attentions": lambda x, context: context.need_weights,
    "past_key_value": _past,
    "past_key_values": _past,
    "position_embeddings": _rotary,
    "position_ids": lambda x, context: _columns(x, context)[None],
    "use_cache": lambda x, context: context.cache is not None,
}
