"""Filters, tests and functions that chat templates can use: jinja2's and the reference's, counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sized
from datetime import datetime
from functools import wraps
from string import Formatter
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedFormatter
from jinja2.utils import Namespace, generate_lorem_ipsum, pass_context

from gptrio.errors import ChatTemplateError
from gptrio.tokenization.templates.growth import attribute_of, reserve_filter, widths_in
from gptrio.tokenization.templates.limits import rendering

Function = Callable[..., Any]


class TemplateFailure(ChatTemplateError, TemplateError):
    """An error of a template, also caught as jinja2's."""


class CountedFormatter(SandboxedFormatter):
    """`str.format` in the sandbox, which counts the widths that it is asked for."""

    def format_field(self, value: Any, format_spec: str) -> str:
        """Format one value."""
        current = rendering()
        current.step()
        current.reserve(widths_in(format_spec))
        text: str = Formatter.format_field(self, value, format_spec)
        current.reserve(len(text))
        return text


class QuietNamespace(Namespace):
    """The `namespace` of a template, whose text does not repeat what is in it, which may be itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


def sized(value: Any) -> Any:
    """Return a value that has a length: an iterator becomes a list."""
    return value if isinstance(value, Sized) else list(value)


def _attributes(context: Context, items: Iterable[Any], names: str) -> list[Any]:
    """Attributes of items, on which a filter works; raises ChatTemplateError if they are too large together."""
    getters = [make_attrgetter(context.environment, name) for name in names.split(",")]
    values = [get(item) for item in items for get in getters]
    rendering().size(values)
    return values


def counted_filter(name: str, function: Function) -> Function:
    """Return a filter that counts what it makes."""

    @pass_context
    @wraps(function, assigned=("__doc__",), updated=())
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        current = rendering()
        current.step()
        value = current.counted(value)
        attribute = attribute_of(name, args, kwargs)
        if name == "join" or attribute is not None:
            value = sized(value)
        weighed = value if attribute is None else _attributes(context, value, str(attribute))
        reserve_filter(name, weighed, *args, **kwargs)
        return current.made(context.call(function, value, *args, **kwargs))

    return run


def counted_test(function: Any) -> Function:
    """Return a test that counts its calls."""

    @pass_context
    def run(context: Context, *args: Any, **kwargs: Any) -> Any:
        rendering().step()
        return context.call(function, *args, **kwargs)

    return run


@pass_context
def count_output(context: Context, value: Any) -> Any:
    """Return what `{{ value }}` writes."""
    current = rendering()
    current.step()
    return current.made(value if isinstance(value, str) else str(value))


@pass_context
def sum_items(context: Context, iterable: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    """Return the sum of items, or of an attribute of theirs."""
    get = make_attrgetter(context.environment, attribute)  # which returns the item itself for None
    total = start
    for item in iterable:
        rendering().step()
        total = rendering().made(total + get(item))
    return total


def to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Return JSON, in which characters stay as they are."""
    current = rendering()
    pad = len(indent) if isinstance(indent, str) else int(indent or 0)
    current.reserve(pad << 12)  # as deep as Python's own limit allows, this is what one line can begin with
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    parts = []
    for part in encoder.iterencode(x):
        current.step()
        parts.append(current.made(part))
    return "".join(parts)


def lorem_ipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
    """Return `n` paragraphs of placeholder text."""
    rendering().reserve(n * max << 4)
    return generate_lorem_ipsum(n, html, min, max)


def raise_exception(message: str) -> None:
    """Let the template refuse what it was given."""
    raise TemplateFailure(message)


def strftime_now(format: str) -> str:
    """Return the current time as text."""
    rendering().reserve(len(format) << 8)  # the C library's widths give at most 256 characters for one
    return datetime.now().strftime(format)
