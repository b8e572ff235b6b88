"""Attention functions by name, those of users among them, as Transformers' models call them.

Shapes: queries (B, H, T, D), keys and values (B, H, S, D), the result (B, T, H, D), weights (B, H, T, S).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from gptrio.errors import InputError
from gptrio.nn import flash
from gptrio.nn.masks import AttentionMask

Function = Callable[..., Any]


class GeneralInterface(MutableMapping[str, Function]):
    """Functions by name: those that the class has for all, and those that this mapping alone has, which come first."""

    _global_mapping: ClassVar[dict[str, Function]] = {}

    def __init__(self) -> None:
        self._local_mapping: dict[str, Function] = {}

    def __getitem__(self, key: str) -> Function:
        return self._local_mapping[key] if key in self._local_mapping else self._global_mapping[key]

    def __setitem__(self, key: str, value: Function) -> None:
        self._local_mapping[key] = value

    def __delitem__(self, key: str) -> None:
        del self._local_mapping[key]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._global_mapping, **self._local_mapping})

    def __len__(self) -> int:
        return len(self._global_mapping.keys() | self._local_mapping.keys())

    @classmethod
    def register(cls, key: str, value: Function) -> None:
        """Give a function a name, for all mappings of this class."""
        cls._global_mapping[key] = value

    def valid_keys(self) -> list[str]:
        """All names."""
        return list(self)


def eager_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    head_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The formula step by step, as the layer's family computes it; a query sees no later position, whatever the mask.

    Args:
        module: the attention layer.
        query: (B, H, T, D).
        key: (B, H, S, D).
        value: (B, H, S, D).
        attention_mask: (B or 1, H or 1, T, S or more), True or 0 where a query attends; None for no further mask.
        scaling: factor of the scores; the layer's own if None.
        dropout: probability of dropping a weight, by the layer's own dropout if it has one.
        head_mask: broadcastable to (B, H, T, S), 1 keeps and 0 removes.
        kwargs: what else layers pass, unused.
    """
    from gptrio.nn.attention import eager  # which imports this module

    mask, options = _described(module, query, key, dropout, scaling)
    mask.custom = None if attention_mask is None else attention_mask[..., : key.shape[2]]
    out, weights = eager(query, key, value, mask, options, head_mask)
    return out.transpose(1, 2), weights


def sdpa_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """`torch.nn.functional.scaled_dot_product_attention`; see `eager_attention_forward`, which applies a `head_mask`.

    Args:
        module: the attention layer.
        query: (B, H, T, D).
        key: (B, H, S, D).
        value: (B, H, S, D).
        attention_mask: (B or 1, H or 1, T, S or more), True attends, or added to the scores; None for causality alone.
        dropout: probability of dropping a weight.
        scaling: factor of the scores; 1 / sqrt(D) if None.
        is_causal: apply the lower triangle; if None, where there is no mask and the layer is causal.
        kwargs: `head_mask`, and what else layers pass, unused.
    """
    if kwargs.get("head_mask") is not None:
        return eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout, **kwargs)
    if attention_mask is not None and attention_mask.dim() == 4:
        attention_mask = attention_mask[..., : key.shape[2]]
    if is_causal is None:
        is_causal = query.shape[2] > 1 and attention_mask is None and getattr(module, "is_causal", True)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, is_causal=bool(is_causal), scale=scaling
    )
    return out.transpose(1, 2).contiguous(), None


def flash_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The functions of the flash_attn package; see `gptrio.nn.flash` for the errors.

    Args:
        module: the attention layer.
        query: (B, H, T, D).
        key: (B, H, S, D).
        value: (B, H, S, D).
        attention_mask: (B, S), 1 for real tokens; None if all are.
        dropout: probability of dropping a weight.
        scaling: factor of the scores; the layer's own if None.
        sliding_window: most positions a query sees, itself included; None for all.
        is_causal: unused, as the layer says whether it is causal.
        kwargs: `head_mask`, and what else layers pass, unused.
    """
    mask, options = _described(module, query, key, dropout, scaling)
    mask.window, mask.attention_mask = sliding_window, None if attention_mask is None else attention_mask.bool()
    return flash.flash(query, key, value, mask, options, kwargs.get("head_mask"))[0].transpose(1, 2), None


def _described(
    module: Any, query: Tensor, key: Tensor, dropout: float, scaling: float | None
) -> tuple[AttentionMask, Any]:
    """The mask of the last queries of all keys, but for padding, and how the layer attends."""
    queries, keys = query.shape[2], key.shape[2]
    causal = not getattr(module, "is_cross_attention", False)
    options = module.options()._replace(dropout=dropout)
    mask = AttentionMask(queries, keys, query.device, query_start=keys - queries, causal=causal)
    return mask, options if scaling is None else options._replace(scale=scaling)


_OWN = (sdpa_attention_forward, flash_attention_forward)


class AttentionInterface(GeneralInterface):
    """What `attn_implementation` may name besides "eager".

    A registered function is called as `function(module, query, key, value, attention_mask, scaling=..., dropout=...,
    head_mask=..., is_causal=..., sliding_window=...)`, and returns the result (B, T, H, D) and the weights or None.
    `attention_mask` is what the function of the same name in `AttentionMaskInterface` returns. Without one, it is None
    where a query sees exactly the keys up to its own, and else (B or 1, H or 1, T, S) to add to the scores.
    """

    _global_mapping: ClassVar[dict[str, Function]] = {
        "sdpa": sdpa_attention_forward,
        flash.NAME: flash_attention_forward,
    }


ALL_ATTENTION_FUNCTIONS = AttentionInterface()


def registered_function(name: str) -> Function | None:
    """The function that a user has registered under a name; None for a back end of this package."""
    function = None if name == "eager" else ALL_ATTENTION_FUNCTIONS.get(name)
    return None if function in _OWN else function


def unless_ours(function: Function) -> Function | None:
    """A function that a user has put in place of a module's `eager_attention_forward`."""
    return None if function is eager_attention_forward else function


def function_of(layer: Any, name: str) -> Function | None:
    """The user's function that computes attention of this name in a layer; None for a back end of this package."""
    own = getattr(layer, "own_function", None)
    return (None if own is None else own(name)) or registered_function(name)


def function_reason(model: Any) -> str | None:
    """Why attention of a model has no fast path: a function of the user's computes it; None if none does."""
    name = getattr(model, "attn_implementation", "")
    if registered_function(name) is not None:
        return f"attention is the registered function {name!r}"
    replaced = any(function_of(part, name) is not None for part in model.modules())
    return "a function of the user's computes attention" if replaced else None


def call_function(
    function: Function,
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: AttentionMask,
    options: Any,
    head_mask: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The result (B, T, H * D) of a user's function, and the weights that it returns; see `attention`.

    Raises:
        InputError: the function's result has another shape.
    """
    from gptrio.nn.mask_interface import mask_for

    is_registered = registered_function(name) is not None
    given = mask_for(name, q, mask, options.module) if is_registered else mask.additive(q.dtype)
    out, weights = function(
        options.module,
        q,
        k,
        v,
        given,
        scaling=options.scale,
        dropout=options.dropout,
        head_mask=head_mask,
        is_causal=given is None and q.shape[2] > 1 and mask.causal,
        sliding_window=mask.window,
    )
    rows, heads, length, width = q.shape
    if tuple(out.shape) not in ((rows, length, heads, width), (rows, length, heads * width)):
        raise InputError(
            f"the attention function {name!r} returned {tuple(out.shape)}; expected (batch {rows}, length {length}, "
            f"heads {heads}, width {width}) for queries of {tuple(q.shape)}: transpose the heads back"
        )
    return out.reshape(rows, length, -1), weights
