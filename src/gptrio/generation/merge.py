"""How the caller's own processors and stopping criteria join those that the options build."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from gptrio.errors import warn

Item = TypeVar("Item")


def merge(built: Sequence[Item], own: Iterable[Item], name: str) -> list[Item]:
    """Return the built items, each replaced by the caller's of the same class, then the caller's others.

    Warns once when something is replaced, since an option then has no effect.

    Args:
        built: made from options.
        own: the caller's.
        name: argument of `generate` that the caller passed them in.
    """
    own = list(own)
    by_type = {type(item): item for item in reversed(own)}
    merged = [by_type.get(type(item), item) for item in built]
    replaced = sorted({type(item).__name__ for item in built if type(item) in by_type})
    if replaced:
        warn(f"{', '.join(replaced)} from {name}= takes the place of the one that the options ask for; leave one out")
    return merged + [item for item in own if not any(item is other for other in merged)]
