"""Score processors and lists of them.

A processor is part of the compiled loop: an array operation of `ids` (B, L), `scores` (B, V) and the number of columns
so far. The numbers that it holds are inputs of the compiled code, so that another temperature compiles nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
from jax import Array

from gptrio.errors import InputError, OptionError

NEG_INF = float("-inf")

Processor = Callable[..., Array]
Class = TypeVar("Class", bound=type)


class FlaxLogitsProcessor:
    """A callable that returns changed scores; subclass it and define `__call__`."""

    def __call__(self, input_ids: Array, scores: Array, cur_len: Array) -> Array:
        """Return the processed scores.

        Args:
            input_ids: (B, L) the tokens, prompt included; those of columns from `cur_len` on are not chosen yet.
            scores: (B, V) logits, or log-probabilities in beam search.
            cur_len: () number of columns so far.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")


class FlaxLogitsWarper(FlaxLogitsProcessor):
    """A processor that is applied in sampling only."""


class FlaxLogitsProcessorList(list[Processor]):
    """Processors applied one after the other."""

    def __call__(self, input_ids: Array, scores: Array, cur_len: Array, **kwargs: Any) -> Array:
        """Return the scores after every processor; see `FlaxLogitsProcessor` for the arguments.

        Args:
            kwargs: further arguments, for the processors that take more than the three.

        Raises:
            InputError: a processor takes an argument that is not in `kwargs`.
        """
        for processor in self:
            names = list(inspect.signature(processor).parameters)[3:]
            missing = [name for name in names if name not in kwargs]
            if missing:
                raise InputError(f"{type(processor).__name__} needs the arguments {missing}; pass them by name")
            scores = processor(input_ids, scores, cur_len, **{name: kwargs[name] for name in names})
        return scores


def compiled_with(*inputs: str) -> Callable[[Class], Class]:
    """Class decorator: JAX sees a processor as a pytree; attributes other than `inputs` are part of the program."""

    def flatten(processor: Any) -> tuple[list[Any], tuple[tuple[str, Any], ...]]:
        held = vars(processor)
        return [held[name] for name in inputs], tuple((name, held[name]) for name in held if name not in inputs)

    def register(cls: Class) -> Class:
        def unflatten(fixed: Iterable[tuple[str, Any]], values: Iterable[Any]) -> Any:
            processor: Any = object.__new__(cls)
            vars(processor).update(fixed)
            vars(processor).update(zip(inputs, values, strict=True))
            return processor

        jax.tree_util.register_pytree_node(cls, flatten, unflatten)
        return cls

    return register


@jax.tree_util.register_static
class Fixed:
    """A processor of the caller's, which is part of the program: another object compiles another one."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor

    def __call__(self, input_ids: Array, scores: Array, cur_len: Array) -> Array:
        """Return the processed scores."""
        return FlaxLogitsProcessorList([self.processor])(input_ids, scores, cur_len)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fixed) and self.processor is other.processor

    def __hash__(self) -> int:
        return id(self.processor)


def merge(built: list[Processor], own: Iterable[Processor]) -> list[Processor]:
    """Return the built processors, then the caller's.

    Raises:
        OptionError: the caller's has the class of a built one.
    """
    own = list(own)
    for processor in own:
        if type(processor) in {type(item) for item in built}:
            raise OptionError(
                f"logits_processor holds a {type(processor).__name__}, which the options of generate made already; "
                "leave one of them out"
            )
    return built + [Fixed(item) if jax.tree_util.all_leaves([item]) else item for item in own]
