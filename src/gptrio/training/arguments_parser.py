"""`HfArgumentParser`: dataclasses such as `TrainingArguments` from a command line, or from JSON and YAML files."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter, ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gptrio.errors import FileOptionError, OptionError, import_optional, nearest

_NONE = type(None)
_TRUE, _FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


def HfArg(
    *,
    aliases: str | list[str] | None = None,
    help: str | None = None,
    default: Any = dataclasses.MISSING,
    default_factory: Any = dataclasses.MISSING,
    metadata: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Declare a field of a dataclass with what its option needs.

    Args:
        aliases: more names of the option, such as "-n".
        help: its description.
        default: value without the option, which is required otherwise.
        default_factory: function that makes such a value.
        metadata: more arguments for argparse's `add_argument`.
        kwargs: for `dataclasses.field`.
    """
    given = {"aliases": aliases, "help": help}
    metadata = {**(metadata or {}), **{name: value for name, value in given.items() if value is not None}}
    return dataclasses.field(metadata=metadata, default=default, default_factory=default_factory, **kwargs)


class HfArgumentParser(ArgumentParser):
    """An argparse parser with an option for each field of some dataclasses, of which it returns objects.

    A field `learning_rate` is the option `--learning_rate` or `--learning-rate`; a boolean is switched on by its name
    alone, and one that is True by default has a `--no_...` as well. Enumerations and literals are choices; lists take
    several values. Further options may be added as to any argparse parser.

    Args:
        dataclass_types: one dataclass, or several.
        kwargs: for `argparse.ArgumentParser`.

    Raises:
        OptionError: a field has a type that is no option, such as a union of two types.
    """

    dataclass_types: list[Any]

    def __init__(self, dataclass_types: Any = None, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", ArgumentDefaultsHelpFormatter)
        super().__init__(**kwargs)
        is_one = dataclass_types is not None and not isinstance(dataclass_types, Iterable)
        self.dataclass_types = [dataclass_types] if is_one else list(dataclass_types or ())
        for kind in self.dataclass_types:
            self._add_fields(kind)

    def _add_fields(self, kind: Any) -> None:
        try:
            hints = get_type_hints(kind)
        except NameError as error:
            raise OptionError(f"a type of {kind.__name__} cannot be found; define it at the top of a module") from error
        name = getattr(kind, "_argument_group_name", None)
        group = self if name is None else self.add_argument_group(name)
        for field in dataclasses.fields(kind):
            if field.init:
                _add_option(group, field, hints[field.name])
        for old in getattr(kind, "_OLD_NAMES", ()):
            group.add_argument(f"--{old}", default=SUPPRESS, help=SUPPRESS)

    def parse_args_into_dataclasses(
        self,
        args: list[str] | None = None,
        return_remaining_strings: bool = False,
        look_for_args_file: bool = True,
        args_filename: str | os.PathLike[str] | None = None,
        args_file_flag: str | None = None,
    ) -> tuple[Any, ...]:
        """Parse a command line.

        Args:
            args: its words; those of this process by default.
            return_remaining_strings: return words that no option takes, too, rather than raise an error.
            look_for_args_file: read words from the script's file with the ending `.args` first, if there is one.
            args_filename: such a file of another name.
            args_file_flag: option that names such files; the last one wins, and words of the command line win over all.

        Returns:
            An object of each dataclass, then a namespace if there are further options, then the remaining words.

        Raises:
            OptionError: words that no option takes.
        """
        if args_file_flag or args_filename or (look_for_args_file and sys.argv):
            words = sys.argv[1:] if args is None else list(args)
            files = [Path(args_filename)] if args_filename else []
            if not args_filename and look_for_args_file and sys.argv:
                files.append(Path(sys.argv[0]).with_suffix(".args"))
            if args_file_flag:
                named, words = _split_files(args_file_flag, words)
                files += named
            texts = [path.read_text(encoding="utf-8") for path in files if path.exists()]
            args = [*(word for text in texts for word in text.split()), *words]
        namespace, remaining = self.parse_known_args(args=args)
        values = vars(namespace)
        outputs: list[Any] = [_taken(kind, values) for kind in self.dataclass_types]
        if values:
            outputs.append(namespace)
        if return_remaining_strings:
            return (*outputs, remaining)
        if remaining:
            known = [option for action in self._actions for option in action.option_strings]
            hint = nearest(remaining[0].split("=")[0], known, before="; ")
            raise OptionError(f"no option takes {' '.join(remaining)}{hint}")
        return tuple(outputs)

    def parse_dict(self, args: dict[str, Any], allow_extra_keys: bool = False) -> tuple[Any, ...]:
        """Make an object of each dataclass from values by name.

        Args:
            args: the values.
            allow_extra_keys: leave out names that no dataclass has, rather than raise an error.

        Raises:
            OptionError: there are such names.
        """
        known = {name for kind in self.dataclass_types for name in _names(kind)}
        extra = sorted(args.keys() - known)
        if extra and not allow_extra_keys:
            hint = nearest(extra[0], known, before="; ")
            raise OptionError(f"no field is named {', '.join(map(repr, extra))}{hint}")
        return tuple(_taken(kind, dict(args)) for kind in self.dataclass_types)

    def parse_json_file(self, json_file: str | os.PathLike[str], allow_extra_keys: bool = False) -> tuple[Any, ...]:
        """Make an object of each dataclass from a JSON file; see `parse_dict`.

        Raises:
            FileOptionError: there is no such file.
            OptionError: the file is no JSON object, or has names that no dataclass has.
        """
        return self._parse_file(json_file, json.loads, ValueError, allow_extra_keys)

    def parse_yaml_file(self, yaml_file: str | os.PathLike[str], allow_extra_keys: bool = False) -> tuple[Any, ...]:
        """Make an object of each dataclass from a YAML file; see `parse_dict`.

        Raises:
            MissingDependencyError: PyYAML is not installed.
            FileOptionError: there is no such file.
            OptionError: the file is no YAML mapping, or has names that no dataclass has.
        """
        yaml = import_optional("yaml", "a YAML file of arguments needs PyYAML; install it with: pip install pyyaml")
        return self._parse_file(yaml_file, yaml.safe_load, yaml.YAMLError, allow_extra_keys)

    def _parse_file(
        self,
        file: str | os.PathLike[str],
        load: Callable[[str], Any],
        error_class: type[Exception],
        allow_extra_keys: bool,
    ) -> tuple[Any, ...]:
        try:
            content = load(Path(file).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileOptionError(f"no file {os.fspath(file)}") from error
        except error_class as error:
            raise OptionError(f"{os.fspath(file)} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise OptionError(f"{os.fspath(file)} holds a {type(content).__name__}; expected values by name")
        return self.parse_dict(content, allow_extra_keys)


def _names(kind: Any) -> list[str]:
    """Arguments of a dataclass, with its earlier names of some."""
    return [*(field.name for field in dataclasses.fields(kind) if field.init), *getattr(kind, "_OLD_NAMES", ())]


def _taken(kind: Any, values: dict[str, Any]) -> Any:
    """An object of a dataclass from its values, which are taken out of those of all."""
    return kind(**{name: values.pop(name) for name in _names(kind) if name in values})


def _split_files(flag: str, words: list[str]) -> tuple[list[Path], list[str]]:
    """Files that an option of the command line names, and the other words."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="files", action="append", default=[])
    namespace, others = parser.parse_known_args(words)
    return [Path(name) for name in namespace.files], others


def _add_option(parser: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    """Add the option of a field, and for a boolean that is True by default its opposite."""
    options = dict(field.metadata)
    aliases = options.pop("aliases", [])
    names = dict.fromkeys([f"--{field.name}", f"--{field.name.replace('_', '-')}"])
    hint = _single_type(hint, field.name)
    is_boolean = hint in (bool, bool | None)
    made = _boolean(field, hint) if is_boolean else _value(field, hint)
    parser.add_argument(*names, *([aliases] if isinstance(aliases, str) else aliases), **options, **made)
    if is_boolean and field.default is True:
        opposites = (f"--no_{field.name}", f"--no-{field.name.replace('_', '-')}")
        parser.add_argument(*opposites, action="store_false", dest=field.name, **options, default=False)


def _single_type(hint: Any, name: str) -> Any:
    """The one type that an option has: `X` of `X | None` and of `X | str`; `bool | None` stays."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    parts = get_args(hint)
    if str not in parts and (len(parts) != 2 or _NONE not in parts):
        raise OptionError(f"field {name!r} may have several types, {hint}; an option has one, or one and None")
    if _NONE not in parts:
        return parts[0] if parts[1] is str else parts[1]
    if bool in parts:
        return bool | None
    return parts[0] if parts[1] is _NONE else parts[1]


def _boolean(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"type": string_to_bool}
    if hint is bool or field.default not in (None, dataclasses.MISSING):
        default = False if field.default is dataclasses.MISSING else field.default
        options |= {"default": default, "nargs": "?", "const": True}
    return options


def _value(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """What argparse needs to know of an option that is no boolean."""
    is_enum = isinstance(hint, type) and issubclass(hint, Enum)
    if is_enum or get_origin(hint) is Literal:
        choices = [member.value for member in hint] if is_enum else get_args(hint)
        return {"choices": choices, "type": make_choice_type_function(choices), **_default(field)}
    if get_origin(hint) is list:
        default = _default(field)
        # argparse would convert a text that is the default of a list
        return {"type": get_args(hint)[0], "nargs": "+", **({} if isinstance(default.get("default"), str) else default)}
    return {"type": hint, **_default(field)}


def _default(field: dataclasses.Field[Any]) -> dict[str, Any]:
    if field.default is not dataclasses.MISSING:
        return {"default": field.default}
    if field.default_factory is not dataclasses.MISSING:
        return {"default": field.default_factory()}
    return {"required": True}


def string_to_bool(v: str | bool) -> bool:
    """The boolean that a word of a command line means.

    Raises:
        ArgumentTypeError: it means none.
    """
    text = str(v).lower()
    if text not in (*_TRUE, *_FALSE):
        raise ArgumentTypeError(f"{v!r} is neither true nor false; expected yes, no, true, false, t, f, y, n, 1 or 0")
    return text in _TRUE


def make_choice_type_function(choices: Iterable[Any]) -> Callable[[str], Any]:
    """A function that returns the choice that a word stands for, and other words as they are."""
    by_text = {str(choice): choice for choice in choices}
    return lambda arg: by_text.get(arg, arg)
