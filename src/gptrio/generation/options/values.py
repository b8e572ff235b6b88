"""Values of options as files and callers hold them, and as JSON has them. No torch is loaded here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from gptrio.errors import OptionError
from gptrio.generation.options.schema import CompileConfig, GenerationOptions
from gptrio.generation.watermark.config import watermarking_from


def plain_value(name: str, value: Any) -> Any:
    """Turn what files and callers may hold in an option's place into the option's own type; None is a default."""
    if value is None:
        return _never_none().get(name)
    if hasattr(value, "tolist"):  # arrays and tensors of token ids
        return value.tolist()
    if isinstance(value, float) and value.is_integer() and name in _counts():
        return int(value)
    if not isinstance(value, dict):
        return value
    if name == "watermarking_config":
        return watermarking_from(value)
    if name == "compile_config":
        return CompileConfig(**value)
    if name == "sequence_bias":  # JSON turns the key (1, 2) into "(1, 2)"
        return {_token_ids(key) if isinstance(key, str) else key: bias for key, bias in value.items()}
    return value


@lru_cache(maxsize=1)
def _counts() -> frozenset[str]:
    """Options that are integers, or may be."""
    hints = get_type_hints(GenerationOptions)
    return frozenset(name for name, hint in hints.items() if hint is int or int in get_args(hint))


@lru_cache(maxsize=1)
def _never_none() -> dict[str, Any]:
    """The defaults of the options that cannot be None."""
    hints = get_type_hints(GenerationOptions)
    rows = dataclasses.fields(GenerationOptions)
    return {row.name: row.default for row in rows if type(None) not in get_args(hints[row.name])}


def _token_ids(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.strip("()").split(",") if part.strip())
    except ValueError as error:
        raise OptionError(f"sequence_bias has the key {text!r}; expected token ids such as '(1, 2)'") from error


def with_dtype_names(value: Any) -> Any:
    """Return `value` with the dtypes that its dictionaries hold under "dtype" as names such as "float16"."""
    if not isinstance(value, dict):
        return value
    return {
        key: str(item).removeprefix("torch.")
        if key == "dtype" and str(item).startswith("torch.")
        else with_dtype_names(item)
        for key, item in value.items()
    }


def json_text(options: dict[str, Any], fallback: Callable[[Any], Any]) -> str:
    """Return options as sorted JSON text; `fallback` turns what JSON cannot hold into what it can."""
    bias = options.get("sequence_bias")
    if isinstance(bias, dict):  # JSON has no tuple keys
        options = options | {"sequence_bias": [[list(ids), value] for ids, value in bias.items()]}
    return json.dumps(options, indent=2, sort_keys=True, default=fallback) + "\n"


def jsonable(value: Any) -> Any:
    """Return what stands for `value` in JSON; raises OptionError for values such as Constraint objects."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if str(value).startswith("torch."):  # a dtype in cache_config
        return str(value).removeprefix("torch.")
    raise OptionError(f"{value!r} of type {type(value).__name__} cannot be written to a file; pass it to generate()")
