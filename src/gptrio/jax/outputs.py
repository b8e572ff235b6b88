"""Result objects of the Flax models; JAX sees them as pytrees, so that jitted functions can return them.

Names and field order are those of Transformers 4.56; `past_key_values`, where a cache was given, comes last. Shapes:
`B` batch, `T` query length, `S` key length, `H` heads, `C` hidden size, `V` vocabulary, `L` layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from jax import Array

from gptrio.outputs import ModelOutput

Output = TypeVar("Output", bound="FlaxModelOutput")


class FlaxModelOutput(ModelOutput):
    """Base of the results: attribute, mapping and tuple access, and a pytree."""

    def __init_subclass__(cls) -> None:
        """Register the class with JAX."""
        super().__init_subclass__()
        jax.tree_util.register_pytree_with_keys(cls, _flatten, cls._unflatten)

    @classmethod
    def _unflatten(cls: type[Output], names: Iterable[str], values: Iterable[Any]) -> Output:
        result = cls()
        for name, value in zip(names, values, strict=True):
            result[name] = value
        return result

    def replace(self: Output, **changes: Any) -> Output:
        """A copy with other values of some fields."""
        return type(self)(**{name: getattr(self, name) for name in self.__dataclass_fields__} | changes)


def _flatten(output: FlaxModelOutput) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
    return [(jax.tree_util.GetAttrKey(name), value) for name, value in output.items()], tuple(output)


@dataclass
class FlaxBaseModelOutput(FlaxModelOutput):
    """Result of a backbone.

    last_hidden_state (B, T, C); hidden_states: L + 1 arrays (B, T, C); attentions: L arrays (B, H, T, S), after
    softmax; past_key_values: cache.
    """

    last_hidden_state: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None
    past_key_values: dict[str, Any] | None = None


@dataclass
class FlaxBaseModelOutputWithPast(FlaxModelOutput):
    """As FlaxBaseModelOutput, with the cache in second place."""

    last_hidden_state: Array | None = None
    past_key_values: dict[str, Any] | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None


@dataclass
class FlaxBaseModelOutputWithPastAndCrossAttentions(FlaxBaseModelOutputWithPast):
    """As FlaxBaseModelOutputWithPast; cross_attentions: L arrays (B, H, T, S of the encoder)."""

    cross_attentions: tuple[Array, ...] | None = None


@dataclass
class FlaxMaskedLMOutput(FlaxModelOutput):
    """Result of a language model: logits (B, T, V)."""

    logits: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None
    past_key_values: dict[str, Any] | None = None


FlaxCausalLMOutput = FlaxMaskedLMOutput


@dataclass
class FlaxCausalLMOutputWithCrossAttentions(FlaxModelOutput):
    """As FlaxMaskedLMOutput; cross_attentions: L arrays (B, H, T, S of the encoder)."""

    logits: Array | None = None
    past_key_values: dict[str, Any] | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None
    cross_attentions: tuple[Array, ...] | None = None


@dataclass
class FlaxSequenceClassifierOutput(FlaxModelOutput):
    """Result of a sequence classifier: logits (B, num_labels)."""

    logits: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None
    past_key_values: dict[str, Any] | None = None


@dataclass
class FlaxTokenClassifierOutput(FlaxModelOutput):
    """Result of a token classifier: logits (B, T, num_labels)."""

    logits: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None
    past_key_values: dict[str, Any] | None = None


@dataclass
class FlaxQuestionAnsweringModelOutput(FlaxModelOutput):
    """Result of a span head: start_logits and end_logits (B, T)."""

    start_logits: Array | None = None
    end_logits: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None
    past_key_values: dict[str, Any] | None = None
