"""How options are declared and checked: type, bounds, choices and help live on the field, checks read them there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, get_origin, overload

from gptrio.config.fields import Bounds, declare, has_type
from gptrio.errors import OptionError


def option(default: Any, help: str, *, choices: tuple[Any, ...] = (), **bounds: float) -> Any:
    """Declare an option as a dataclass field: its default, one line of help, and the values it may take.

    Args:
        default: value when not given.
        help: one line, shown by command lines and documentation.
        choices: the accepted values besides None (any, when empty).
        **bounds: see `Bounds`.
    """
    return declare(default, help=help, choices=choices, bounds=Bounds(**bounds))


def check_option(field: dataclasses.Field[Any], value: object, hint: Any) -> None:
    """Raise OptionError when a value does not suit a declared option."""
    if not has_type(value, hint):
        raise OptionError(
            f"{field.name}={value!r} has the wrong type; expected {_readable(hint)}: {field.metadata['help']}"
        )
    if value is None:
        return
    choices, bounds = field.metadata["choices"], field.metadata["bounds"]
    if choices and value not in choices:
        raise OptionError(f"{field.name}={value!r} is not known; expected one of {list(choices)}")
    if isinstance(value, (int, float)) and not bounds.hold(value):
        raise OptionError(f"{field.name}={value!r} is out of range; expected a number {bounds}")


def check_token_ids(name: str, ids: Any) -> list[int]:
    """Return a token id or several as a list; raises OptionError for what is none, or for one past 64 bits."""
    several = list(ids) if isinstance(ids, (list, tuple)) else [ids]
    if not has_type(several, list[int]) or not all(-(1 << 63) <= token < 1 << 63 for token in several):
        raise OptionError(f"{name}={ids!r} must be a token id or a list of them")
    return several


def _readable(hint: Any) -> str:
    return str(hint) if get_origin(hint) else hint.__name__


@overload
def check_number(name: str, value: object, kind: type[int], **bounds: float) -> int: ...


@overload
def check_number(name: str, value: object, kind: type[float], **bounds: float) -> float: ...


def check_number(name: str, value: Any, kind: type[int] | type[float], **bounds: float) -> int | float:
    """Return `value` as an int or float, or raise OptionError naming the argument and the numbers it may take."""
    allowed = Bounds(**bounds)
    if not has_type(value, kind) or not allowed.hold(value):
        noun = "an integer" if kind is int else "a number"
        raise OptionError(f"{name}={value!r} must be {noun} {allowed}".rstrip())
    return kind(value)


def unknown_option(name: str, known: Iterable[str], owner: str) -> OptionError:
    """Return the error for an option that does not exist, naming the nearest one that does."""
    near = get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return OptionError(f"{owner} has no option {name!r}{hint}")
