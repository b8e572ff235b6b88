"""Results as trees of tensors, so that `torch.export` and others that map over outputs see into them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch.utils import _pytree

from gptrio import outputs
from gptrio.outputs import ModelOutput


def register_outputs() -> None:
    """Tell torch how every result class is taken apart and put together."""
    for name, kind in vars(outputs).items():
        if isinstance(kind, type) and issubclass(kind, ModelOutput) and kind is not ModelOutput:
            _pytree.register_pytree_node(
                kind,
                _flatten,
                functools.partial(_unflatten, kind),
                serialized_type_name=f"gptrio.outputs.{name}",
                flatten_with_keys_fn=_flatten_with_keys,
            )


def _flatten(output: ModelOutput) -> tuple[list[Any], list[str]]:
    return list(output.to_tuple()), list(output)


def _flatten_with_keys(output: ModelOutput) -> tuple[list[tuple[Any, Any]], list[str]]:
    values, names = _flatten(output)
    return [(_pytree.MappingKey(name), value) for name, value in zip(names, values, strict=True)], names


def _unflatten(kind: type[ModelOutput], values: Iterable[Any], names: list[str]) -> ModelOutput:
    return kind(**dict(zip(names, values, strict=True)))
