"""How large the results of filters, methods and operators can be, so that too large ones are never computed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gptrio.errors import ChatTemplateError
from gptrio.tokenization.templates.limits import MOST_BITS, MOST_PARTS, rendering

_COMPARISONS = 8  # 2 to the power of this many characters are compared in the time that one takes to make
_ENCODINGS = ("utf-8", "utf8", "ascii", "latin-1")  # the work of others can grow with the square of the text


def reserve_filter(name: str, *args: Any, **kwargs: Any) -> None:
    """Count what a filter makes of its arguments; raises ChatTemplateError if that is too much."""
    if name in _FILTERS:
        rendering().reserve(_FILTERS[name](*args, **kwargs))
    elif name in _SLOW_FILTERS and rendering().size((*args, *kwargs.values())) > _SLOW_FILTERS[name]:
        raise ChatTemplateError(f"filter {name!r} takes at most {_SLOW_FILTERS[name]:,} characters and items")


def attribute_of(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The attribute of its items that a filter works on; None if it works on the items."""
    place = _ATTRIBUTES.get(name)
    if place is None:
        return None
    return args[place] if len(args) > place else kwargs.get("attribute")


def reserve_method(name: str, *args: Any, **kwargs: Any) -> None:
    """Count what a method of a built-in type makes; `args` begin with the object."""
    if name in _METHODS:
        rendering().reserve(_METHODS[name](*args, **kwargs))


def reserve_operator(operator: str, left: Any, right: Any) -> None:
    """Count what a binary operator makes."""
    if operator in _OPERATORS:
        rendering().reserve(_OPERATORS[operator](left, right))


def widths_in(specification: str) -> int:
    """Sum of all numbers in the format specification of one value, which bounds the padding that it asks for."""
    return sum(int(digits[:20]) for digits in re.findall(r"\d+", specification))


def _product(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return _bits(left.bit_length() + right.bit_length())
    for sequence, count in ((left, right), (right, left)):
        if isinstance(count, int) and isinstance(sequence, (str, bytes, list, tuple)):
            return len(sequence) * count
    return 0


def _power(base: Any, exponent: Any) -> int:
    return _bits(base.bit_length() * exponent) if isinstance(base, int) and isinstance(exponent, int) else 0


def _bits(count: int) -> int:
    return 0 if count <= MOST_BITS else MOST_PARTS + 1


def _remainder(left: Any, right: Any) -> int:
    return _printf(left, right) if isinstance(left, (str, bytes)) else 0


def _printf(template: Any, values: Any) -> int:
    """Characters of `template % values`: widths, which may come from the values, and each value as often as named."""
    text = template.decode("latin-1") if isinstance(template, bytes) else str(template)
    widths = sum(
        int(number[0][:20])
        for number in re.finditer(r"\d+", text)
        if (after := text[number.end() : number.end() + 1]).isalpha() or after in (".", "%", "*")
    )
    if "*" in text:
        given = values if isinstance(values, tuple) else (values,)
        widths += text.count("*") * max((abs(value) for value in given if isinstance(value, int)), default=0)
    return len(text) + widths + text.count("%") * rendering().size(values)


def _format_filter(value: Any, *args: Any, **kwargs: Any) -> int:
    return _printf(value, kwargs or args)


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> int:
    text, old = value if isinstance(value, (str, bytes)) else str(value), old if isinstance(old, bytes) else str(old)
    return (text.count(old) if old else len(text) + 1) * len(new if isinstance(new, bytes) else str(new))


def _join(separator: Any, items: Any) -> int:
    return len(items) * len(separator) + rendering().size(items)


def _join_filter(value: Any, d: Any = "", attribute: Any = None) -> int:
    return _join(str(d), value)


def _indent(s: Any, width: Any = 4, first: bool = False, blank: bool = False) -> int:
    lines = len(str(s).splitlines()) + 1
    return lines * (len(width) if isinstance(width, str) else width)


def _wordwrap(s: Any, width: int = 79, *_: Any, wrapstring: str | None = None, **__: Any) -> int:
    return len(str(s)) * (1 + len(wrapstring or next((text for text in _ if isinstance(text, str)), "")))


def _round(value: Any, precision: int = 0, method: str = "common") -> int:
    return abs(precision) << 12  # a power of ten with this many digits: some hundreds are enough for any float


def _width(value: Any, width: int = 80, *_: Any, **__: Any) -> int:
    return width


def _expandtabs(value: Any, tabsize: int = 8) -> int:
    return int(value.count("\t" if isinstance(value, str) else b"\t") * tabsize)


def _translate(value: Any, table: Any) -> int:
    items: Iterable[Any] = table.values() if isinstance(table, Mapping) else table
    return len(value) * max((rendering().size(item) for item in items), default=1)


def _comparisons(value: Any, other: Any = None, *_: Any, **__: Any) -> int:
    """Cost of a search that compares every character of `value` with every one of `other`."""
    return 0 if other is None else len(str(value)) * len(other) >> _COMPARISONS


def _code(value: Any, encoding: str = "utf-8", errors: str = "strict") -> int:
    if encoding.lower() not in _ENCODINGS:
        raise ChatTemplateError(f"encoding {encoding!r} in a chat template; expected one of {', '.join(_ENCODINGS)}")
    return len(value)


_OPERATORS: dict[str, Callable[[Any, Any], int]] = {"*": _product, "**": _power, "%": _remainder}

_FILTERS: dict[str, Callable[..., int]] = {
    "batch": _width,
    "center": _width,
    "format": _format_filter,
    "indent": _indent,
    "join": _join_filter,
    "replace": _replace,
    "round": _round,
    "slice": _width,
    "trim": _comparisons,
    "wordwrap": _wordwrap,
}

_SLOW_FILTERS = {"pprint": 1 << 14, "striptags": 1 << 14, "urlize": 1 << 12, "xmlattr": 1 << 14}

_ATTRIBUTES = {"groupby": 0, "join": 1, "max": 1, "min": 1, "sort": 2, "unique": 1}  # place among the arguments

_METHODS: dict[str, Callable[..., int]] = {
    "center": _width,
    "decode": _code,
    "encode": _code,
    "expandtabs": _expandtabs,
    "join": _join,
    "ljust": _width,
    "lstrip": _comparisons,
    "replace": _replace,
    "rfind": _comparisons,
    "rindex": _comparisons,
    "rjust": _width,
    "rpartition": _comparisons,
    "rsplit": _comparisons,
    "rstrip": _comparisons,
    "strip": _comparisons,
    "striptags": lambda value: _comparisons(value, value),
    "to_bytes": _width,
    "translate": _translate,
    "zfill": _width,
}
