"""JSON schemas of Python functions, which describe them to a model as tools."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gptrio.errors import DocstringParsingException, TypeHintParsingException

Schema = dict[str, Any]

_NAMES: dict[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_NAMES_OF_OTHERS = {("torch", "Tensor"): "audio", ("PIL.Image", "Image"): "image"}  # by module and name
_SECTION = re.compile(r"(?:Args|Returns|Raises):")
_ARGUMENT = re.compile(r"(\w+):\s*(.*)")
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def get_json_schema(func: Callable[..., Any]) -> Schema:
    """Describe a function by its type hints and its docstring, as chat templates expect a tool.

    Args:
        func: a function with type hints and a docstring in Google's format, which describes each argument. A
            description may end in `(choices: ["tea", "coffee"])`.

    Returns:
        `{"type": "function", "function": {"name": ..., "description": ..., "parameters": ..., "return": ...}}`.

    Raises:
        DocstringParsingException: the docstring is missing or lacks an argument.
        TypeHintParsingException: a type hint is missing or has no JSON schema.
    """
    doc = (inspect.getdoc(func) or "").strip()
    name = func.__name__
    if not doc:
        raise DocstringParsingException(f"function {name} has no docstring; describe it and its arguments there")
    descriptions = _argument_descriptions(doc)
    properties, required = _properties(func)
    returned = properties.pop("return", None)
    for argument, schema in properties.items():
        if argument not in descriptions:
            raise DocstringParsingException(
                f"the docstring of function {name} does not describe argument {argument!r}; add it under 'Args:'"
            )
        schema.update(_described(descriptions[argument]))
    parameters: Schema = {"type": "object", "properties": properties}
    function = {
        "name": name,
        "description": _SECTION.split(doc, maxsplit=1)[0].strip(),
        "parameters": parameters | ({"required": required} if required else {}),
    }
    if returned is not None:
        description = _section(doc, "Returns", "Raises")
        function["return"] = returned | ({} if description is None else {"description": description})
    return {"type": "function", "function": function}


def _section(doc: str, name: str, *ends: str) -> str | None:
    """Text of a section of a docstring, up to the first of those in `ends`; None if there is none."""
    stop = "".join(rf"{end}:|" for end in ends)
    found = re.search(rf"\n\s*{name}:\n(.*?)(?:{stop}\Z)", doc, re.DOTALL)
    return None if found is None else found[1].strip()


def _argument_descriptions(doc: str) -> dict[str, str]:
    descriptions: dict[str, list[str]] = {}
    current: list[str] = []
    for line in (_section(doc, "Args", "Returns", "Raises") or "").splitlines():
        start = _ARGUMENT.match(line.strip())
        if start is not None:
            current = descriptions[start[1]] = []
        current.append(start[2].strip() if start else line.strip())
    return {name: " ".join(filter(None, lines)) for name, lines in descriptions.items()}


def _described(description: str) -> Schema:
    """Description of an argument, and its choices if it names any."""
    choices = _CHOICES.search(description)
    if choices is None:
        return {"description": description}
    values = [value.strip() for value in json.loads(choices[1])]
    return {"enum": values, "description": description[: choices.start()].strip()}


def _properties(func: Callable[..., Any]) -> tuple[dict[str, Schema], list[str]]:
    """Schema of each type hint, `return` among them, and the arguments without a default."""
    parameters = inspect.signature(func).parameters
    for name, parameter in parameters.items():
        if parameter.annotation is inspect.Parameter.empty:
            raise TypeHintParsingException(f"argument {name!r} of function {func.__name__} has no type hint; add one")
    required = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    return {name: _schema(hint) for name, hint in get_type_hints(func).items()}, required


def _schema(hint: Any) -> Schema:
    """JSON schema of a type hint."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is None:
        return {} if hint is Any else {"type": _name_of(hint)}
    if origin in (Union, UnionType):
        return _union(args)
    if origin is Literal:
        return _literal(args)
    if origin is list:
        return {"type": "array"} | ({"items": _schema(args[0])} if args else {})
    if origin is tuple:
        return _tuple(hint, args)
    if origin is dict:
        return {"type": "object"} | ({"additionalProperties": _schema(args[1])} if len(args) == 2 else {})
    raise TypeHintParsingException(f"type hint {hint} has no JSON schema; use numbers, strings, lists, dicts or unions")


def _name_of(kind: Any) -> str:
    try:
        known = _NAMES.get(kind)
    except TypeError:  # not hashable
        known = None
    module = str(getattr(kind, "__module__", ""))
    return known or _NAMES_OF_OTHERS.get((module, getattr(kind, "__name__", "")), "object")


def _union(args: tuple[Any, ...]) -> Schema:
    subtypes = [_schema(arg) for arg in args if arg is not type(None)]
    if len(subtypes) == 1:
        schema = subtypes[0]
    elif all(isinstance(subtype.get("type"), str) for subtype in subtypes):
        schema = {"type": sorted(subtype["type"] for subtype in subtypes)}
    else:
        schema = {"anyOf": subtypes}
    return schema | ({"nullable": True} if type(None) in args else {})


def _literal(args: tuple[Any, ...]) -> Schema:
    if any(type(arg) not in _NAMES for arg in args):
        raise TypeHintParsingException(f"Literal{list(args)} has no JSON schema: not all are plain constants")
    names = list(dict.fromkeys(_NAMES[type(arg)] for arg in args))
    return {"type": names[0] if len(names) == 1 else names, "enum": list(args)}


def _tuple(hint: Any, args: tuple[Any, ...]) -> Schema:
    if len(args) == 1 or ... in args:
        raise TypeHintParsingException(f"type hint {hint} has no JSON schema; use list[...] for any number of items")
    return {"type": "array"} | ({"prefixItems": [_schema(arg) for arg in args]} if args else {})
