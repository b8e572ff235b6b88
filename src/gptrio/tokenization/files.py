"""Tokenizer folders: find and read the files, and write them as Transformers does."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gptrio.errors import CheckpointNotFoundError, TokenizationError, warn
from gptrio.hub import HubOptions, local_folder, write_text
from gptrio.tokenization.special_tokens import AddedToken
from gptrio.tokenization.vocabulary import ADDED_TOKENS_FILE, TOKENIZER_FILE, joined_path, read_object, write_json
from gptrio.utils.versions import versioned_file

if TYPE_CHECKING:
    from gptrio.tokenization.base import PreTrainedTokenizerBase

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_MAP_FILE = "special_tokens_map.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
CHAT_TEMPLATE_DIR = "additional_chat_templates"

# classes, without "Fast", that are used for any model; the second one is of Transformers 5
GENERIC_CLASSES = ("PreTrainedTokenizer", "TokenizersBackend")

_IGNORED = ("resume_download", "proxies", "code_revision", "_from_auto", "_from_pipeline", "_commit_hash")
# keys of tokenizer_config.json about loading rather than the tokenizer itself; files are searched in the folder only
_NOT_SETTINGS = (
    "tokenizer_class",
    "auto_map",
    "init_inputs",
    "name_or_path",
    "special_tokens_map_file",
    "tokenizer_file",
    "vocab_file",
    "merges_file",
    "tokenizer_object",
)

AnyTokenizer = TypeVar("AnyTokenizer", bound="PreTrainedTokenizerBase")
PathLike = str | os.PathLike[str]


def load_tokenizer(cls: type[AnyTokenizer], name_or_path: PathLike, kwargs: dict[str, Any]) -> AnyTokenizer:
    """Build a tokenizer of class `cls` from its files; `kwargs` override their settings."""
    kwargs = {name: value for name, value in kwargs.items() if name not in _IGNORED}
    hub, config = HubOptions.pop_from(kwargs), kwargs.pop("_tokenizer_config", None)  # AutoTokenizer has read it
    if config is None:
        config_path = hub.find(name_or_path, TOKENIZER_CONFIG_FILE)
        hub = hub if config_path is None else hub.pinned_to(config_path)
        config = read_object(config_path)
    _warn_of_other_class(cls, config.get("tokenizer_class"))
    settings = {name: _revive(value) for name, value in config.items() if name not in _NOT_SETTINGS}
    _take_extra_special_tokens(settings)
    templates = _read_chat_templates(name_or_path, hub)
    if templates:
        settings["chat_template"] = templates["default"] if [*templates] == ["default"] else templates
    settings.update(kwargs)
    files = {
        **cls.vocab_files_names,
        "tokenizer_file": versioned_file(TOKENIZER_FILE, settings.get("fast_tokenizer_files")),
    }
    settings |= {key: _find_path(hub, name_or_path, file) for key, file in files.items() if settings.get(key) is None}
    if not any(settings[key] for key in files):
        names = ", ".join(files.values())
        raise CheckpointNotFoundError(f"{name_or_path} has no tokenizer for {cls.__name__}: expected {names}")
    settings["name_or_path"] = os.fspath(name_or_path)
    if "added_tokens_decoder" in settings:
        added = _declared_tokens(settings["added_tokens_decoder"])
    else:
        _take_special_tokens_map(hub.find(name_or_path, SPECIAL_TOKENS_MAP_FILE), settings, kwargs)
        added = _undeclared_tokens(cls, settings, hub.find(name_or_path, ADDED_TOKENS_FILE))
    return cls(**{**_with_added_tokens(cls, settings, added), "added_tokens_decoder": added})


def _take_extra_special_tokens(settings: dict[str, Any]) -> None:
    """Move extra special tokens that are a list, as in Transformers 5, to the additional special tokens."""
    if isinstance(settings.get("extra_special_tokens"), list):
        _add_special(settings, settings.pop("extra_special_tokens"))


def _add_special(settings: dict[str, Any], tokens: Iterable[Any]) -> None:
    """Add tokens to the additional special ones, unless they are among them."""
    known = list(settings.get("additional_special_tokens") or [])
    new = [token for token in map(_special, tokens) if token not in known]
    settings["additional_special_tokens"] = known + new


def _find_path(hub: HubOptions, name_or_path: PathLike, file: str) -> str | None:
    path = hub.find(name_or_path, file)
    return None if path is None else os.fspath(path)


def _warn_of_other_class(cls: type, tokenizer_class: str | None) -> None:
    if tokenizer_class is not None and not isinstance(tokenizer_class, str):
        raise TokenizationError(f"tokenizer_class is {tokenizer_class!r}; expected the name of a class")
    generic = (*GENERIC_CLASSES, cls.__name__.removesuffix("Fast"))
    if tokenizer_class is not None and tokenizer_class.removesuffix("Fast") not in generic:
        warn(f"the files belong to a {tokenizer_class}, but {cls.__name__} reads them and may split text differently")


def _read_chat_templates(name_or_path: PathLike, hub: HubOptions) -> dict[str, str]:
    """Templates by name: the default one, and those in a folder of their own.

    The hub is asked for the names in that folder only if there is a default template, to save a request for all others.
    """
    default = hub.find(name_or_path, CHAT_TEMPLATE_FILE)
    paths = {"default": default}
    if default is not None or local_folder(name_or_path) is not None:
        files = [file for file in hub.list_folder(name_or_path, CHAT_TEMPLATE_DIR) if file.endswith(".jinja")]
        paths |= {file.removesuffix(".jinja"): hub.find(name_or_path, f"{CHAT_TEMPLATE_DIR}/{file}") for file in files}
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items() if path is not None}


def _declared_tokens(declared: Any) -> dict[int, AddedToken]:
    """Added tokens by id, from the configuration or from the caller."""
    if not isinstance(declared, dict) or not all(str(index).isdecimal() for index in declared):
        raise TokenizationError(f"added_tokens_decoder is {declared!r}; expected added tokens by id")
    return {int(index): _as_token(token) for index, token in declared.items()}


def _undeclared_tokens(
    cls: type[PreTrainedTokenizerBase], settings: Mapping[str, Any], path: Path | None
) -> dict[int, AddedToken]:
    """Added tokens by id if the configuration lists none: from `added_tokens.json`, then `tokenizer.json`."""
    special = set(_special_texts(cls, settings))
    added = {
        index: AddedToken(text, normalized=text not in special, special=text in special)
        for text, index in read_object(path).items()
    }
    for state in read_object(settings["tokenizer_file"]).get("added_tokens", []):
        added[state["id"]] = _as_token({name: value for name, value in state.items() if name != "id"})
    return added


def _take_special_tokens_map(path: Path | None, settings: dict[str, Any], kwargs: Mapping[str, Any]) -> None:
    """Put the special tokens of `special_tokens_map.json` into `settings`, unless the caller gave them."""
    for name, value in read_object(path).items():
        if kwargs.get(name):
            continue
        if name == "additional_special_tokens":
            _add_special(settings, value)
        else:
            settings[name] = _special(value)


def _special_texts(cls: type[PreTrainedTokenizerBase], settings: Mapping[str, Any]) -> list[str]:
    found = (settings.get(name) for name in cls.SPECIAL_TOKENS_ATTRIBUTES)
    return [str(token) for value in found if value for token in (value if isinstance(value, list) else [value])]


def _with_added_tokens(
    cls: type[PreTrainedTokenizerBase], settings: dict[str, Any], added: Mapping[int, AddedToken]
) -> dict[str, Any]:
    """Give the special tokens the matching rules of the added tokens of the same text."""
    by_text = {token.content: token for token in added.values()}
    names = [n for n in cls.SPECIAL_TOKENS_ATTRIBUTES if settings.get(n) and n != "additional_special_tokens"]
    return settings | {name: by_text.get(str(settings[name]), settings[name]) for name in names}


def _as_token(value: Any) -> AddedToken:
    if isinstance(value, AddedToken):
        return value
    try:
        return AddedToken(**value)
    except TypeError as error:
        raise TokenizationError(f"added token {value!r}: expected an object of content and matching rules") from error


def _special(value: Any) -> Any:
    return _as_token({**value, "special": True}) if isinstance(value, dict) else value


def _revive(value: Any) -> Any:
    """Turn each JSON object in `value` that describes an `AddedToken` back into one."""
    if isinstance(value, dict):
        if value.get("__type") == "AddedToken":
            return _as_token({name: item for name, item in value.items() if name != "__type"})
        return {name: _revive(item) for name, item in value.items()}
    return [_revive(item) for item in value] if isinstance(value, list) else value


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    save_directory: PathLike,
    legacy_format: bool | None,
    filename_prefix: str | None,
    save_jinja_files: bool,
) -> tuple[str, ...]:
    """Write every file of a tokenizer; see `PreTrainedTokenizerBase.save_pretrained`."""
    if os.path.isfile(save_directory):
        raise TokenizationError(f"{save_directory} is a file; expected a folder")
    os.makedirs(save_directory, exist_ok=True)
    config = _config_of(tokenizer)
    templates = (
        _save_chat_templates(tokenizer.chat_template, save_directory, filename_prefix) if save_jinja_files else ()
    )
    if tokenizer.chat_template is not None and not save_jinja_files:
        named = tokenizer.chat_template
        config["chat_template"] = (
            named if isinstance(named, str) else [{"name": name, "template": text} for name, text in named.items()]
        )
    config_path = joined_path(save_directory, filename_prefix, TOKENIZER_CONFIG_FILE)
    write_json(config_path, config)
    map_path = joined_path(save_directory, filename_prefix, SPECIAL_TOKENS_MAP_FILE)
    write_json(map_path, _plain(tokenizer.special_tokens_map_extended, {"special": None}))
    vocabularies = tokenizer._save_vocabularies(os.fspath(save_directory), legacy_format, filename_prefix)
    return (config_path, map_path, *templates, *vocabularies)


def _config_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Content of `tokenizer_config.json`: the current settings, without those that other files store."""
    config: dict[str, Any] = copy.deepcopy(tokenizer.init_kwargs)
    sides = [
        side
        for side in ("padding_side", "truncation_side")
        if getattr(type(tokenizer), side) != getattr(tokenizer, side)
    ]
    for name in (*config, *sides, "model_max_length", "clean_up_tokenization_spaces", "extra_special_tokens"):
        config[name] = getattr(tokenizer, name, config.get(name))
    config.update(tokenizer.special_tokens_map)
    for name in (*_NOT_SETTINGS, "chat_template", "device_map"):
        config.pop(name, None)
    config = dict(_plain(config, {"__type": "AddedToken"}))
    config["added_tokens_decoder"] = {
        index: token.__getstate__() for index, token in tokenizer.added_tokens_decoder.items()
    }
    has_slow_form = "vocab_file" in tokenizer.vocab_files_names
    name = type(tokenizer).__name__
    config["tokenizer_class"] = name.removesuffix("Fast") if has_slow_form else name
    return config


def _plain(value: Any, changes: Mapping[str, Any]) -> Any:
    """Turn AddedTokens into JSON objects, with some keys changed (None drops one)."""
    if isinstance(value, AddedToken):
        return {name: item for name, item in {**value.__getstate__(), **changes}.items() if item is not None}
    if isinstance(value, dict):
        return {name: _plain(item, changes) for name, item in value.items()}
    return [_plain(item, changes) for item in value] if isinstance(value, (list, tuple)) else value


def _save_chat_templates(
    template: str | dict[str, str] | None, folder: PathLike, filename_prefix: str | None
) -> tuple[str, ...]:
    named = {} if template is None else {"default": template} if isinstance(template, str) else template
    paths = []
    for name in named:
        if not re.fullmatch(r"[\w-][\w.-]*", name):
            raise TokenizationError(
                f"chat template {name!r} cannot be a file of that name: expected letters, digits, '_', '-' and '.'; "
                "rename it, or save with save_jinja_files=False"
            )
    for name, text in named.items():
        if name == "default":
            path = joined_path(folder, filename_prefix, CHAT_TEMPLATE_FILE)
        else:
            extra = joined_path(folder, filename_prefix, CHAT_TEMPLATE_DIR)
            os.makedirs(extra, exist_ok=True)
            path = os.path.join(extra, f"{name}.jinja")
        write_text(path, text)
        paths.append(path)
    return tuple(paths)
