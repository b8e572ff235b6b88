"""Tokenizer folders: find and read the files, and write them as Transformers does."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from gptrio.errors import CheckpointNotFoundError, GptrioWarning, TokenizationError, UnsupportedError
from gptrio.hub import HubOptions, local_folder, locate_file
from gptrio.tokenization.base import PreTrainedTokenizerBase
from gptrio.tokenization.special_tokens import AddedToken
from gptrio.tokenization.vocabulary import joined_path, read_json, write_json, write_text

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_MAP_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
CHAT_TEMPLATE_DIR = "additional_chat_templates"

_IGNORED = (
    "resume_download",
    "proxies",
    "trust_remote_code",
    "code_revision",
    "_from_auto",
    "_from_pipeline",
    "_commit_hash",
)
# keys of tokenizer_config.json that say what to load, not how the tokenizer works
_NOT_SETTINGS = ("tokenizer_class", "auto_map", "name_or_path", "special_tokens_map_file", "tokenizer_file")

AnyTokenizer = TypeVar("AnyTokenizer", bound=PreTrainedTokenizerBase)
PathLike = str | os.PathLike[str]


def refuse_remote_code(kwargs: Mapping[str, Any]) -> None:
    """Raise if a caller asks for a checkpoint's code to be run."""
    if kwargs.get("trust_remote_code"):
        raise UnsupportedError(
            "trust_remote_code=True: gptrio never runs code from a checkpoint; leave the argument out"
        )


def load_tokenizer(
    cls: type[AnyTokenizer], name_or_path: PathLike, inputs: tuple[Any, ...], kwargs: dict[str, Any]
) -> AnyTokenizer:
    """Build a tokenizer of class `cls` from its files; `kwargs` go before what these say."""
    refuse_remote_code(kwargs)
    kwargs = {name: value for name, value in kwargs.items() if name not in _IGNORED}
    if "use_auth_token" in kwargs:  # never to be written to a configuration
        kwargs.setdefault("token", kwargs.pop("use_auth_token"))
    hub = HubOptions.pop_from(kwargs)

    def locate(filename: str) -> Path | None:
        return locate_file(name_or_path, filename, **hub.as_kwargs(), required=False)

    settings, tokenizer_class = _read_config(locate(TOKENIZER_CONFIG_FILE))
    _warn_of_other_class(cls, tokenizer_class)
    templates = _read_chat_templates(name_or_path, locate)
    if templates:
        settings["chat_template"] = templates["default"] if [*templates] == ["default"] else templates
    inputs = inputs or tuple(settings.pop("init_inputs", ()))
    settings.update(kwargs)
    files = {**cls.vocab_files_names, "tokenizer_file": TOKENIZER_FILE}
    settings |= {key: locate(filename) for key, filename in files.items() if settings.get(key) is None}
    if not any(settings[key] for key in files):
        names = ", ".join(files.values())
        raise CheckpointNotFoundError(f"{name_or_path} holds no tokenizer for {cls.__name__}: expected {names}")
    settings["name_or_path"] = os.fspath(name_or_path)
    added = _added_tokens(cls, settings, kwargs, locate)
    return cls(*inputs, **{**_with_added_tokens(cls, settings, added), "added_tokens_decoder": added})


def _read_config(path: Path | None) -> tuple[dict[str, Any], str | None]:
    """Settings of a `tokenizer_config.json`, and the class it was written by."""
    config = {} if path is None else read_json(path)
    if not isinstance(config, dict):
        raise TokenizationError(f"{path}: expected a JSON object")
    settings = {name: _revive(value) for name, value in config.items() if name not in _NOT_SETTINGS}
    return settings, config.get("tokenizer_class")


def _warn_of_other_class(cls: type, tokenizer_class: str | None) -> None:
    generic = ("PreTrainedTokenizer", cls.__name__.removesuffix("Fast"))
    if tokenizer_class is not None and tokenizer_class.removesuffix("Fast") not in generic:
        warnings.warn(
            f"the files are of a {tokenizer_class} and are read by {cls.__name__}, which may split text otherwise",
            GptrioWarning,
            stacklevel=4,
        )


def _read_chat_templates(name_or_path: PathLike, locate: Any) -> dict[str, str]:
    """Templates by name: the default one, and those of a local folder's extra directory."""
    default = locate(CHAT_TEMPLATE_FILE)
    paths = {} if default is None else {"default": default}
    folder = local_folder(name_or_path)
    if folder is not None:
        paths |= {path.stem: path for path in sorted((folder / CHAT_TEMPLATE_DIR).glob("*.jinja"))}
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items()}


def _added_tokens(
    cls: type[PreTrainedTokenizerBase], settings: dict[str, Any], kwargs: Mapping[str, Any], locate: Any
) -> dict[int, AddedToken]:
    """Added tokens by id; special tokens of the older files are put into `settings`."""
    declared = settings.pop("added_tokens_decoder", None)
    if declared is not None:
        return {int(index): _as_token(token) for index, token in declared.items()}
    _read_special_tokens_map(locate(SPECIAL_TOKENS_MAP_FILE), settings, kwargs)
    added: dict[int, AddedToken] = {}
    path = locate(ADDED_TOKENS_FILE)
    special = set(_special_texts(cls, settings))
    for text, index in (read_json(path) if path else {}).items():
        added[index] = AddedToken(text, normalized=text not in special, special=text in special)
    tokenizer_file = settings.get("tokenizer_file")
    for state in read_json(tokenizer_file).get("added_tokens", []) if tokenizer_file else []:
        added[state["id"]] = AddedToken(**{name: value for name, value in state.items() if name != "id"})
    return added


def _read_special_tokens_map(path: Path | None, settings: dict[str, Any], kwargs: Mapping[str, Any]) -> None:
    for name, value in (read_json(path) if path else {}).items():
        if kwargs.get(name):
            continue
        if name == "additional_special_tokens":
            known = list(settings.get(name) or [])
            settings[name] = known + [token for token in map(_special, value) if token not in known]
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
    if not isinstance(value, dict):
        raise TokenizationError(
            f"added_tokens_decoder holds {value!r}; expected objects with content and matching rules"
        )
    return AddedToken(**value)


def _special(value: Any) -> Any:
    return AddedToken(**{**value, "special": True}) if isinstance(value, dict) else value


def _revive(value: Any) -> Any:
    """Turn what JSON says of an AddedToken back into one, wherever it stands."""
    if isinstance(value, dict):
        if value.get("__type") == "AddedToken":
            return AddedToken(**{name: item for name, item in value.items() if name != "__type"})
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


def save_added_tokens(tokenizer: PreTrainedTokenizerBase, folder: str, filename_prefix: str | None) -> tuple[str, ...]:
    """Write the tokens that the vocabulary files lack, if there are any; return the path."""
    added = {text: index for text, index in tokenizer.added_tokens_encoder.items() if index >= tokenizer.vocab_size}
    if not added:
        return ()
    path = joined_path(folder, filename_prefix, ADDED_TOKENS_FILE)
    write_json(path, added)
    return (path,)


def _config_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Content of `tokenizer_config.json`: the settings as they are now, without what other files hold."""
    config: dict[str, Any] = copy.deepcopy(tokenizer.init_kwargs)
    sides = [
        side
        for side in ("padding_side", "truncation_side")
        if getattr(type(tokenizer), side) != getattr(tokenizer, side)
    ]
    for name in (*config, *sides, "model_max_length", "clean_up_tokenization_spaces", "extra_special_tokens"):
        config[name] = getattr(tokenizer, name, config.get(name))
    config.update(tokenizer.special_tokens_map)
    if tokenizer.init_inputs:
        config["init_inputs"] = list(tokenizer.init_inputs)
    for name in (*tokenizer.vocab_files_names, *_NOT_SETTINGS, "chat_template", "device_map"):
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
