"""Checks of a tokenizer's settings, which come from files, callers and backends."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Mapping
from typing import Any

from gptrio.errors import TokenizationError
from gptrio.tokenization.special_tokens import Token


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the values of the settings that are known.

    Raises:
        TokenizationError: a value is not possible; names the setting, the value and what is expected.
    """
    for name in settings.keys() & _RULES.keys():
        accepts, expected = _RULES[name]
        if not accepts(settings[name]):
            raise TokenizationError(f"{name} is {settings[name]!r}; expected {expected}")


def _is_error_handler(value: Any) -> bool:
    try:
        codecs.lookup_error(value)
    except (LookupError, TypeError, ValueError):
        return False
    return True


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def _is_template(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, Mapping) and {"name", "template"} <= item.keys() for item in value)
    return value is None or isinstance(value, (str, Mapping))


def _are_tokens_by_name(value: Any) -> bool:
    return value is None or (
        isinstance(value, Mapping) and all(isinstance(item, Token) for part in value.items() for item in part)
    )


_SWITCH = (lambda value: value in (None, 0, 1), "True or False")  # which equal 1 and 0
_LIMIT = (
    lambda value: value is None or (isinstance(value, (int, float)) and -math.inf < value < math.inf),
    "a number of tokens",
)
_SIDE = (lambda value: value in ("left", "right"), "'left' or 'right'")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "add_bos_token": _SWITCH,
    "add_eos_token": _SWITCH,
    "add_prefix_space": _SWITCH,
    "clean_up_tokenization_spaces": _SWITCH,
    "split_special_tokens": _SWITCH,
    "model_max_length": _LIMIT,
    "max_len": _LIMIT,
    "padding_side": _SIDE,
    "truncation_side": _SIDE,
    "errors": (_is_error_handler, "the name of a handler of decoding errors, such as 'replace' or 'strict'"),
    "model_input_names": (_are_names, "a list of names"),
    "chat_template": (_is_template, "a template, templates by name, or a list of objects with 'name' and 'template'"),
    "extra_special_tokens": (_are_tokens_by_name, "tokens by attribute name"),
}
