"""Configurations as dictionaries, JSON texts and files."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, overload

from gptrio.config import labels
from gptrio.config.generation_keys import GenerationKeys
from gptrio.errors import CheckpointFormatError, ConfigError, UnsupportedError, warn
from gptrio.hub import HubOptions, commit_of, folder_to_write, read_json, refuse_code, write_text
from gptrio.uploads import Pushable, Upload
from gptrio.utils.file_names import CONFIG_NAME
from gptrio.utils.versions import API_VERSION, versioned_file

Config = TypeVar("Config", bound="SerializableConfig")

PathLike = str | os.PathLike[str]
SPELLINGS = {"torch_dtype": "dtype", "name_or_path": "_name_or_path", "attn_implementation": "_attn_implementation"}
_NOT_IN_FILES = ("_attn_implementation", "_commit_hash", "_dtype_name")


class SerializableConfig(GenerationKeys, Pushable):
    """Reads and writes configurations as dictionaries and files; `PretrainedConfig` declares their fields."""

    model_type: ClassVar[str] = ""
    attribute_map: ClassVar[Mapping[str, str]] = {}
    _auto_class: ClassVar[str | None] = None
    _dtype_name: str | None
    name_or_path: Any
    if TYPE_CHECKING:  # as `PretrainedConfig` defines them

        def to_diff_dict(self) -> dict[str, Any]:
            """Return what `config.json` holds."""

        def _is_attribute(self, name: str) -> bool: ...

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type = "AutoConfig") -> None:
        """Set the auto class that loads this class.

        Raises:
            UnsupportedError: the class is not gptrio's: code is never written beside weights, nor loaded.
        """
        name = auto_class if isinstance(auto_class, str) else auto_class.__name__
        if not cls.__module__.startswith("gptrio."):
            raise UnsupportedError(
                f"{cls.__name__} cannot be saved as code for {name}; where its module is imported, "
                f"AutoConfig.register({cls.model_type!r}, {cls.__name__}) lets AutoConfig load it"
            )
        cls._auto_class = name

    @overload
    @classmethod
    def from_dict(
        cls: type[Config], config_dict: Mapping[str, Any], *, return_unused_kwargs: Literal[False] = ..., **kwargs: Any
    ) -> Config: ...
    @overload
    @classmethod
    def from_dict(
        cls: type[Config], config_dict: Mapping[str, Any], *, return_unused_kwargs: Literal[True], **kwargs: Any
    ) -> tuple[Config, dict[str, Any]]: ...
    @classmethod
    def from_dict(
        cls: type[Config], config_dict: Mapping[str, Any], *, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Config | tuple[Config, dict[str, Any]]:
        """Build a configuration from a dictionary, overridden by keyword arguments.

        Args:
            config_dict: names (or aliases) and values, as in `config.json`.
            return_unused_kwargs: also return the keywords that are not configuration attributes.
            kwargs: overrides; those that are not attributes are ignored, or returned with `return_unused_kwargs`.
        """
        values = cls._canonical(config_dict)
        values.pop("_attn_implementation", None)  # chosen by the caller, never by a file
        known = {row.name for row in fields(cls)} | set(values) | set(SPELLINGS.values())
        overrides = cls._canonical(kwargs)
        known |= {name for name in overrides if isinstance(getattr(cls, name, None), property)}
        used = {name: value for name, value in overrides.items() if name in known}
        config = cls(**cls._override(values, used))
        own = {name for name in overrides.keys() - known if config._is_attribute(name)}  # which a subclass adds
        for name in own:
            setattr(config, name, overrides[name])
        if not return_unused_kwargs:
            return config
        known = known - {"dtype"} | own
        return config, {name: value for name, value in overrides.items() if name not in known}

    def to_dict(self) -> dict[str, Any]:
        """Return every attribute, with plain values that JSON can hold."""
        attributes = {name: _plain(value) for name, value in vars(self).items() if name not in _NOT_IN_FILES}
        return attributes | {
            "dtype": self._dtype_name,
            "model_type": self.model_type,
            "transformers_version": API_VERSION,
        }

    @overload
    @classmethod
    def from_pretrained(
        cls: type[Config],
        pretrained_model_name_or_path: PathLike,
        *,
        return_unused_kwargs: Literal[False] = ...,
        **kwargs: Any,
    ) -> Config: ...
    @overload
    @classmethod
    def from_pretrained(
        cls: type[Config],
        pretrained_model_name_or_path: PathLike,
        *,
        return_unused_kwargs: Literal[True],
        **kwargs: Any,
    ) -> tuple[Config, dict[str, Any]]: ...
    @classmethod
    def from_pretrained(
        cls: type[Config], pretrained_model_name_or_path: PathLike, *, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Config | tuple[Config, dict[str, Any]]:
        """Read `config.json` of a folder, a packaged model or a hub repository.

        Args:
            pretrained_model_name_or_path: folder, name or id; or a JSON file itself.
            return_unused_kwargs: also return the keywords that are not configuration attributes.
            kwargs: lookup options (see `gptrio.hub.HubOptions`) and overrides of values.

        Raises:
            CheckpointNotFoundError, CheckpointFormatError: there is no such file, or it is not a JSON object.
            ConfigError: a value is impossible, or the file is of another family.
            UnsupportedError: code of a checkpoint that has some is trusted.
        """
        values, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        config, unused = cls.from_dict(values, return_unused_kwargs=True, **kwargs)
        config.name_or_path = pretrained_model_name_or_path
        if cls._is_of_another_family(values.get("model_type")):
            warn(f"{cls.__name__} is for model_type={cls.model_type!r}, but the file has {values['model_type']!r}")
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the content of `config.json` and the keywords that are not lookup options.

        Of the `configuration_files` that it lists, the one for Transformers 4.56 is read instead.
        """
        options = HubOptions.pop_from(kwargs)
        path = Path(pretrained_model_name_or_path)
        is_file = path.is_file()
        if not is_file:
            path = options.locate(pretrained_model_name_or_path, CONFIG_NAME)
        try:
            values = read_json(path)
            if not is_file and (file := versioned_file(CONFIG_NAME, values.get("configuration_files"))) != CONFIG_NAME:
                values = read_json(path := options.locate(pretrained_model_name_or_path, file))
            values["_commit_hash"] = commit_of(path)
        except CheckpointFormatError as error:
            if not is_file or path.name == CONFIG_NAME:
                raise
            raise CheckpointFormatError(
                f"{os.fspath(path)!r} is a file and no configuration in JSON; give the folder of a model, or the name "
                "of a hub repository"
            ) from error
        refuse_code(options.trust_remote_code, values, path)
        return values, kwargs

    @classmethod
    def from_json_file(cls: type[Config], json_file: PathLike) -> Config:
        """Read a JSON file written by `to_json_file`."""
        return cls.from_dict(read_json(json_file))

    def to_json_file(self, json_file_path: PathLike, use_diff: bool = True) -> None:
        """Write the configuration as JSON; an old file stays until the new one is complete."""
        write_text(json_file_path, self.to_json_string(use_diff))

    def save_pretrained(self, save_directory: PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `config.json` into a folder, made if need be, and optionally push the folder to the hub.

        Args:
            save_directory: the folder.
            push_to_hub: push what is new in it, to the repository `repo_id` or one named like the folder.
            kwargs: `repo_id`, and options of `push_to_hub`.
        """
        folder = folder_to_write(save_directory, f"to save {CONFIG_NAME} into")
        if misplaced := self._get_non_default_generation_parameters():
            given = ", ".join(f"{name}={value!r}" for name, value in misplaced.items())
            warn(f"{given} in {CONFIG_NAME} are options of generate; they belong on a GenerationConfig, or in its file")
        folder.mkdir(parents=True, exist_ok=True)
        upload = Upload.of_save(folder, kwargs) if push_to_hub else None
        self.to_json_file(folder / CONFIG_NAME)
        if upload is not None:
            upload.finish(self, **kwargs)

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return the configuration as JSON text: what `config.json` holds, or with `use_diff=False` every attribute."""
        content = self.to_diff_dict() if use_diff else self.to_dict()
        try:
            return json.dumps(content, indent=2, sort_keys=True) + "\n"
        except TypeError as error:
            raise ConfigError(f"{type(self).__name__} holds a value that JSON cannot: {error}") from error

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_diff_dict(), indent=2, sort_keys=True, default=repr)}\n"

    @classmethod
    def _override(cls, values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        return labels.override(values, overrides)

    @classmethod
    def _canonical(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Replace aliases by the names of their fields; refuse two spellings of one field that disagree."""
        renamed: dict[str, Any] = {}
        for key, value in values.items():
            name = cls.attribute_map.get(key) or SPELLINGS.get(key, key)
            if key == "torch_dtype" and values.get("dtype") is not None:
                continue  # the newer name wins
            if renamed.get(name) is not None and value is not None and renamed[name] != value:
                both = f"{name}={renamed[name]!r} and {key}={value!r}"
                raise ConfigError(f"{cls.__name__}: {both} disagree; give one of them")
            if value is not None or name not in renamed:
                renamed[name] = value
        cls._check_model_type(renamed.pop("model_type", None))
        return renamed

    @classmethod
    def _check_model_type(cls, model_type: str | None) -> None:
        """Refuse the configuration of another family, but not in a class of a family that gptrio does not have."""
        is_of_gptrio = any(base.__module__.startswith("gptrio.") and base.model_type for base in _bases(cls))
        if is_of_gptrio and cls._is_of_another_family(model_type):
            raise ConfigError(
                f"{cls.__name__} is for model_type={cls.model_type!r}, but the configuration has {model_type!r}; "
                "use that family's class or AutoConfig"
            )

    @classmethod
    def _is_of_another_family(cls, model_type: str | None) -> bool:
        return bool(cls.model_type and model_type) and model_type not in [base.model_type for base in _bases(cls)]


def _bases(cls: type[SerializableConfig]) -> list[type[SerializableConfig]]:
    return [base for base in cls.__mro__ if issubclass(base, SerializableConfig)]


def _plain(value: Any) -> Any:
    """Return a copy of `value` of types that JSON supports, as far as possible."""
    if hasattr(value, "to_dict"):  # nested configurations
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if type(value).__module__ == "torch":  # torch.dtype
        return str(value).removeprefix("torch.")
    return copy.deepcopy(value)
