"""Options that are given as `name=value` on a command line, as in Transformers' `chat`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from gptrio.cli.text import decode_argument
from gptrio.errors import OptionError

_WORDS = {"true": True, "false": False, "none": None, "null": None}


def parse_assignments(words: Iterable[str]) -> dict[str, Any]:
    """Names and values: numbers, true, false, none, lists in brackets such as [1,2]; anything else is a text.

    Raises:
        OptionError: a word is not `name=value`.

    Example:
        >>> parse_assignments(["top_k=5", "do_sample=False", "labels=good,bad"])
        {'top_k': 5, 'do_sample': False, 'labels': 'good,bad'}
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise OptionError(f"{word!r} is not an option; write it as name=value, without spaces around the =")
        found[name] = _value(decode_argument(value))
    return found


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text
