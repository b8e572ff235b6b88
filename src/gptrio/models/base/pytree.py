"""Registers results and caches as pytrees, so that `torch.export` and other code can map over their tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils import _pytree

from gptrio.cache import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from gptrio.outputs import ModelOutput


def register_pytrees() -> None:
    """Register every result class, and the cache in it, as a pytree node."""
    _pytree.register_pytree_node(
        DynamicCache,
        _flatten_cache,
        _unflatten_cache,
        serialized_type_name="gptrio.cache.DynamicCache",
        flatten_with_keys_fn=_flatten_cache_with_keys,
    )
    _register_output(ModelOutput)
    for kind in _subclasses(ModelOutput):
        _register_output(kind)
    ModelOutput.when_subclassed = staticmethod(_register_output)


def _subclasses(kind: type[ModelOutput]) -> Iterator[type[ModelOutput]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _register_output(kind: type[ModelOutput]) -> None:
    _pytree.register_pytree_node(
        kind,
        _flatten,
        functools.partial(_unflatten, kind),
        serialized_type_name=f"{kind.__module__}.{kind.__qualname__}",
        flatten_with_keys_fn=_flatten_with_keys,
    )


def _flatten(output: ModelOutput) -> tuple[list[Any], list[str]]:
    return list(output.to_tuple()), list(output)


def _flatten_with_keys(output: ModelOutput) -> tuple[list[tuple[Any, Any]], list[str]]:
    values, names = _flatten(output)
    return [(_pytree.MappingKey(name), value) for name, value in zip(names, values, strict=True)], names


def _unflatten(kind: type[ModelOutput], values: Iterable[Any], names: list[str]) -> ModelOutput:
    return kind(**dict(zip(names, values, strict=True)))


def _flatten_cache(cache: DynamicCache) -> tuple[list[Any], list[Any]]:
    """Keys and values of every layer, or two None; and the window of each, if it has one, and how many it dropped."""
    pairs = [layer.get_states() or (None, None) for layer in cache.layers]
    windows = [
        (layer.window, layer.dropped) if isinstance(layer, DynamicSlidingWindowLayer) else None
        for layer in cache.layers
    ]
    return [states for pair in pairs for states in pair], windows


def _flatten_cache_with_keys(cache: DynamicCache) -> tuple[list[tuple[Any, Any]], list[Any]]:
    states, windows = _flatten_cache(cache)
    return [(_pytree.SequenceKey(i), tensor) for i, tensor in enumerate(states)], windows


def _unflatten_cache(states: Iterable[Any], windows: list[Any]) -> DynamicCache:
    cache, flat = DynamicCache(), list(states)
    for window, keys, values in zip(windows, flat[::2], flat[1::2], strict=True):
        layer = DynamicLayer() if window is None else DynamicSlidingWindowLayer(window[0])
        if keys is not None:
            layer.set_states(keys, values)
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.dropped = window[1]
        cache.layers.append(layer)
    return cache
