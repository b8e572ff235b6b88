"""How a configuration declares a field: its default and the rule that its value must keep."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from gptrio.errors import ConfigError

LARGEST_COUNT = 2**31 - 1
LARGEST_WIDTH = 2**24  # a weight of that many inputs, and of any count of outputs, is one that torch can count


@dataclass(frozen=True)
class Rule:
    """What the value of a field must be, as a test and in words; `whole` takes 2.0 for the integer 2."""

    accepts: Callable[[Any], bool]
    expected: str
    whole: bool = False

    def taken(self, value: Any) -> Any:
        """Return the value as the field keeps it."""
        return int(value) if self.whole and isinstance(value, float) and value.is_integer() else value

    def check(self, owner: str, name: str, value: object) -> None:
        """Raise ConfigError, naming field, value and accepted values, unless `value` keeps the rule."""
        if not self.accepts(value):
            raise ConfigError(f"{owner}: {name}={value!r} is not possible; expected {self.expected}")


def declare(
    default: Any, accepts: Callable[[Any], bool], expected: str, *, optional: bool = False, whole: bool = False
) -> Any:
    """Declare a dataclass field with a rule; `optional` also lets None pass, `whole` an integer as a float."""
    if optional:
        rule = Rule(lambda value: value is None or accepts(value), f"{expected} or None", whole)
    else:
        rule = Rule(accepts, expected, whole)
    return dataclasses.field(default=default, metadata={"rule": rule})


def count(default: int | None, *, least: int = 1, most: int = LARGEST_COUNT, optional: bool = False) -> Any:
    """Declare a size or number of things: an integer from `least` to `most`."""
    expected = f"an integer >= {least} (at most {most})"

    def accepts(value: object) -> bool:
        return isinstance(value, int) and is_integer(value) and least <= value <= most

    return declare(default, accepts, expected, optional=optional, whole=True)


def probability(default: float) -> Any:
    """Declare a dropout rate: a number from 0 to 1, False for none."""
    return declare(
        default, lambda value: isinstance(value, bool) or (is_number(value) and 0 <= value <= 1), "a number from 0 to 1"
    )


def positive(default: float) -> Any:
    """Declare a number above 0."""
    return declare(default, lambda value: is_number(value) and value > 0, "a number above 0")


def not_negative(default: float) -> Any:
    """Declare a number of at least 0."""
    return declare(default, lambda value: is_number(value) and value >= 0, "a number >= 0")


def flag(default: bool) -> Any:
    """Declare a switch; files of other writers have 0, 1 or null for it."""

    def accepts(value: object) -> bool:
        return value is None or (isinstance(value, (bool, int, float)) and value in (0, 1))

    return declare(default, accepts, "True or False")


def text(default: str | None, *, optional: bool = False) -> Any:
    """Declare a string."""
    return declare(default, lambda value: isinstance(value, str), "a string", optional=optional)


def choice(default: str | None, values: Iterable[str], *, optional: bool = False) -> Any:
    """Declare a string out of a few."""
    names = tuple(values)
    return declare(default, lambda value: value in names, "one of " + ", ".join(map(repr, names)), optional=optional)


def token_id(default: int | None) -> Any:
    """Declare a token id: an integer, several in a list, or None."""

    def accepts(value: object) -> bool:
        return all(map(is_integer, value)) if isinstance(value, (list, tuple)) else is_integer(value)

    return declare(default, accepts, "an integer, a list of integers", optional=True, whole=True)


def is_integer(value: object) -> bool:
    """Tell whether `value` is an integer (True and False are not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Tell whether `value` is a finite integer or float (True and False are not)."""
    return (isinstance(value, float) and math.isfinite(value)) or is_integer(value)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a field, freshly built if it has a factory."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def divides(config: Any, part: str, whole: str) -> None:
    """Raise ConfigError unless one field of `config` divides another."""
    size, parts = getattr(config, whole), getattr(config, part)
    if size % parts:
        raise ConfigError(f"{type(config).__name__}: {whole}={size} is not divisible by {part}={parts}")
