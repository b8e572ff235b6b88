"""How configurations and the options of `generate` declare a field: its default, and its allowed values."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, overload

from gptrio.errors import ConfigError, OptionError, nearest

LARGEST_COUNT = 2**31 - 1
LARGEST_WIDTH = 2**24  # torch can count the elements of a weight with this many inputs and any number of outputs


@dataclass(frozen=True)
class Bounds:
    """The allowed numbers of a field: at least `ge`, above `gt`, at most `le`, below `lt`."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def hold(self, value: float) -> bool:
        """Return whether `value` lies inside (a NaN never does)."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        given = [(words[name], bound) for name, bound in vars(self).items() if bound is not None]
        return " and ".join(f"{word} {bound:.10g}" for word, bound in given)


@dataclass(frozen=True)
class Rule:
    """What the value of a field must be, as a test and in words; `whole` converts 2.0 to the integer 2."""

    accepts: Callable[[Any], bool]
    expected: str
    whole: bool = False

    def convert(self, value: Any) -> Any:
        """Return the value as the field stores it."""
        return int(value) if self.whole and isinstance(value, float) and value.is_integer() else value

    def check(self, owner: str, name: str, value: object) -> None:
        """Raise ConfigError, naming field, value and accepted values, unless `value` keeps the rule."""
        if not self.accepts(value):
            raise ConfigError(f"{owner}: {name}={value!r} is not possible; expected {self.expected}")


def declare(default: Any, **metadata: Any) -> Any:
    """Declare a dataclass field: its default and, by name, other facts about it, such as `rule=Rule(...)`."""
    return dataclasses.field(default=default, metadata=metadata)


def ruled(
    default: Any, accepts: Callable[[Any], bool], expected: str, *, optional: bool = False, whole: bool = False
) -> Any:
    """Declare a field with a rule; `optional` also accepts None, `whole` an integer as a float."""
    if optional:
        return declare(default, rule=Rule(lambda value: value is None or accepts(value), f"{expected} or None", whole))
    return declare(default, rule=Rule(accepts, expected, whole))


def count(default: int | None, *, least: int = 1, most: int = LARGEST_COUNT, optional: bool = False) -> Any:
    """Declare a size or number of things: an integer from `least` to `most`."""
    bounds = Bounds(ge=least, le=most)
    return ruled(
        default, lambda v: has_type(v, int) and bounds.hold(v), f"an integer {bounds}", optional=optional, whole=True
    )


def number(default: float, **bounds: float) -> Any:
    """Declare a finite number within `bounds` (see `Bounds`)."""
    allowed = Bounds(**bounds)
    return ruled(default, lambda value: is_number(value) and allowed.hold(value), f"a number {allowed}")


def probability(default: float) -> Any:
    """Declare a dropout rate: a number from 0 to 1, False for none."""
    allowed = Bounds(ge=0, le=1)
    return ruled(default, lambda v: isinstance(v, bool) or (is_number(v) and allowed.hold(v)), f"a number {allowed}")


def flag(default: bool) -> Any:
    """Declare a switch; some files have 0, 1 or null in its place."""

    def accepts(value: object) -> bool:
        return value is None or (isinstance(value, (bool, int, float)) and value in (0, 1))

    return ruled(default, accepts, "True or False")


def text(default: str | None, *, optional: bool = False) -> Any:
    """Declare a string."""
    return ruled(default, lambda value: isinstance(value, str), "a string", optional=optional)


def choice(default: str | None, values: Iterable[str], *, optional: bool = False) -> Any:
    """Declare a string that is one of `values`."""
    names = tuple(values)
    return ruled(default, lambda value: value in names, "one of " + ", ".join(map(repr, names)), optional=optional)


def token_id(default: int | None) -> Any:
    """Declare a token id: an integer, several in a list, or None."""
    accepts = functools.partial(has_type, hint=int | list[int])
    return ruled(default, accepts, "an integer, a list of integers", optional=True, whole=True)


def has_type(value: object, hint: Any) -> bool:
    """Return whether a value has the type that an annotation names; an int passes for a float, a bool for neither."""
    if hint is Any:
        return True
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(has_type(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, (list, tuple)) and all(has_type(item, arguments[0]) for item in value)
    if origin is not None:
        return isinstance(value, origin)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def is_number(value: object) -> bool:
    """Return whether `value` is a finite integer or float (True and False are not)."""
    return has_type(value, int) or (isinstance(value, float) and math.isfinite(value))


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a field, freshly built if it has a factory."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def divides(config: Any, part: str, whole: str) -> None:
    """Raise ConfigError unless one field of `config` divides another."""
    size, parts = getattr(config, whole), getattr(config, part)
    if size % parts:
        raise ConfigError(f"{type(config).__name__}: {whole}={size} is not divisible by {part}={parts}")


@overload
def check_number(name: str, value: object, kind: type[int], **bounds: float) -> int: ...
@overload
def check_number(name: str, value: object, kind: type[float], **bounds: float) -> float: ...
def check_number(name: str, value: Any, kind: type[int] | type[float], **bounds: float) -> int | float:
    """Return `value` as an int or float; raise OptionError, naming the argument and its range, for other values."""
    allowed = Bounds(**bounds)
    if not has_type(value, kind) or not allowed.hold(value):
        noun = "an integer" if kind is int else "a number"
        raise OptionError(f"{name}={value!r} must be {noun} {allowed}".rstrip())
    return kind(value)


def check_token_ids(name: str, ids: Any) -> list[int]:
    """Return a token id or several as a list; raise OptionError for other values, or for an id past 64 bits."""
    several = as_list(ids)
    if not has_type(several, list[int]) or not all(-(1 << 63) <= token < 1 << 63 for token in several):
        raise OptionError(f"{name}={ids!r} must be a token id or a list of them")
    return several


def as_list(ids: Any) -> list[Any]:
    """Return token ids that are given as one, several or None as a list."""
    return [] if ids is None else list(ids) if isinstance(ids, (list, tuple)) else [ids]


def unknown_option(name: str, known: Iterable[str], owner: str) -> OptionError:
    """Return the error for an option that does not exist; it names the nearest one that does."""
    return OptionError(f"{owner} has no option {name!r}{nearest(name, known, before='; ')}")
