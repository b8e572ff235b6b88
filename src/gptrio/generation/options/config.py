"""`GenerationConfig`: values of the options of `generate`, their checks and their files. No torch is loaded here."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, overload

from gptrio.config.fields import as_list, unknown_option
from gptrio.errors import OptionError, nearest, warn
from gptrio.generation.options.schema import (
    CALL_ARGUMENTS,
    GenerationMode,
    GenerationOptions,
    check_conflicts,
    check_option,
    convert,
    ignored_options,
    option_types,
)
from gptrio.hub import HubOptions, commit_of, folder_to_write, read_json, write_text
from gptrio.uploads import Pushable, Upload
from gptrio.utils.file_names import GENERATION_CONFIG_NAME
from gptrio.utils.versions import API_VERSION

if TYPE_CHECKING:
    from typing_extensions import Self

    from gptrio.config.base import PretrainedConfig

_METADATA = ("_from_model_config", "_commit_hash", "_original_object_hash", "transformers_version")
_NOT_IN_FILES = ("compile_config", "_commit_hash", "_original_object_hash")


@dataclasses.dataclass(init=False, eq=False, repr=False)
class GenerationConfig(GenerationOptions, Pushable):
    """The options of `generate`: pass them by name; wrong types and contradictions raise OptionError.

    `dataclasses.fields(GenerationConfig)` lists them; each field's `metadata["help"]` describes it. Other names
    become attributes and are written to files, with a warning if the name is close to an option's.
    """

    def __init__(self, **options: Any) -> None:
        """Set options by name; the others have their defaults. Options without effect give one warning."""
        for field in dataclasses.fields(self):
            vars(self)[field.name] = convert(field.name, options.pop(field.name, field.default))
        self._from_model_config: bool = options.pop("_from_model_config", False)
        self._commit_hash: str | None = options.pop("_commit_hash", None)
        self._original_object_hash: int | None = None
        self.transformers_version: str = options.pop("transformers_version", API_VERSION)
        if not self._from_model_config:  # otherwise they are fields of the model's configuration
            for name, value in options.items():
                if callable(getattr(type(self), name, None)):
                    warn(f"{name}={value!r} is left out, because GenerationConfig has a method of that name")
                else:
                    setattr(self, name, value)
        self.validate()

    def __getattr__(self, name: str) -> Any:
        """Name the nearest option (called only for names that are not set)."""
        raise AttributeError(name if name.startswith("_") else str(_unknown(name)))

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an option or any other attribute, with a warning if its name is close to an option's."""
        if not (name in vars(self) or name.startswith("_") or name in option_types()):
            hint = nearest(name, option_types(), cutoff=0.85)
            if hint:
                warn(f"{name!r} is not an option of generate and has no effect; {hint}")
        super().__setattr__(name, value)

    # checks
    def check(self) -> None:
        """Raise OptionError for arguments of `generate`, wrong types, values out of range and contradictions."""
        for name in CALL_ARGUMENTS:
            if name in vars(self):
                raise _unknown(name)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not field.default:
                check_option(field, value)
        if self.watermarking_config is not None:
            self.watermarking_config.validate()
        check_conflicts(self)

    def validate(self, strict: bool = False) -> None:
        """Check, then warn once of the options that have no effect; with `strict` raise OptionError for them."""
        self.check()
        issues = ignored_options(self)
        if not issues:
            return
        message = "these generation options have no effect: " + "; ".join(issues)
        if strict:
            raise OptionError(message)
        warn(message)

    def get_generation_mode(self, assistant_model: object | None = None) -> GenerationMode:
        """Return the decoding mode of these options; warn if it ignores drafts or DoLa, which they also select."""
        mode = self._base_mode()
        single = mode in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
        drafts = (assistant_model, self.prompt_lookup_num_tokens, self.assistant_early_exit)
        special_modes = {
            GenerationMode.ASSISTED_GENERATION: any(draft is not None for draft in drafts),
            GenerationMode.DOLA_GENERATION: self.dola_layers is not None,
        }
        for special in (mode for mode, is_selected in special_modes.items() if is_selected):
            if single:
                mode = special
            else:
                warn(f"{special.value} works with greedy search and sampling only; {mode.value} ignores its options")
        return mode

    def _base_mode(self) -> GenerationMode:
        if self.constraints is not None or self.force_words_ids is not None:
            return GenerationMode.CONSTRAINED_BEAM_SEARCH
        if self.num_beams > 1:
            if self.num_beam_groups > 1:
                return GenerationMode.GROUP_BEAM_SEARCH
            return GenerationMode.BEAM_SAMPLE if self.do_sample else GenerationMode.BEAM_SEARCH
        if self.do_sample:
            return GenerationMode.SAMPLE
        if self.penalty_alpha and self.top_k is not None and self.top_k > 1:
            return GenerationMode.CONTRASTIVE_SEARCH
        return GenerationMode.GREEDY_SEARCH

    def update(self, **options: Any) -> dict[str, Any]:
        """Set the attributes that exist and return the arguments that do not; an error leaves the config unchanged."""
        changed = copy.copy(self)
        used = {name: convert(name, value) for name, value in options.items() if name in vars(self)}
        vars(changed).update(used)
        changed.validate()
        vars(self).update(used)
        return {name: value for name, value in options.items() if name not in used}

    # dictionaries and files
    def to_dict(self) -> dict[str, Any]:
        """Return all attributes as a new dictionary, without `compile_config`, which depends on the machine."""
        held = {name: value for name, value in vars(self).items() if name not in _NOT_IN_FILES}
        result: dict[str, Any] = _with_dtype_names(copy.deepcopy(held))
        return result | {"transformers_version": API_VERSION}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return options that differ from their defaults, other attributes, and the version of the format."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)} | {"_from_model_config": False}
        return {name: v for name, v in self.to_dict().items() if name not in defaults or v != defaults[name]}

    def to_json_string(self, use_diff: bool = True, ignore_metadata: bool = False) -> str:
        """Return the options as JSON; raise OptionError for values outside of JSON, such as Constraint objects."""
        options = self.to_diff_dict() if use_diff else self.to_dict()
        return _json_text(_without_metadata(options) if ignore_metadata else options, _jsonable)

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write the options to a JSON file, completely or not at all."""
        write_text(json_file_path, self.to_json_string(use_diff))

    @overload
    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], return_unused_kwargs: Literal[False] = False, **kwargs: Any
    ) -> GenerationConfig: ...

    @overload
    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], return_unused_kwargs: Literal[True], **kwargs: Any
    ) -> tuple[GenerationConfig, dict[str, Any]]: ...

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> GenerationConfig | tuple[GenerationConfig, dict[str, Any]]:
        """Build from a file's dictionary; `kwargs` win.

        Returns:
            The configuration, or with `return_unused_kwargs` the pair of it and the unused kwargs: none, except for a
            configuration made from a model's, which has no attributes besides the options.

        Raises:
            OptionError: a value is wrong.
        """
        config = cls(**{**config_dict, **kwargs})
        unused = {name: value for name, value in kwargs.items() if name not in vars(config)}
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def from_model_config(cls, model_config: PretrainedConfig) -> GenerationConfig:
        """Build from the generation options that an older model's `config.json` holds.

        Impossible values are left out with a warning, because the model may be used without `generate`.
        """
        held = model_config.to_dict().items()
        options = {name: value for name, value in held if name in option_types() and value is not None}
        for field in dataclasses.fields(cls):
            if field.name in options:
                try:
                    check_option(field, convert(field.name, options[field.name]))
                except OptionError as error:
                    warn(f"{type(model_config).__name__}: {error}; generate leaves it out")
                    del options[field.name]
        if any(options.get(flag) for flag in cls.extra_output_flags):
            options["return_dict_in_generate"] = True
        return cls(**options, _from_model_config=True).as_made()

    def as_made(self) -> Self:
        """Store a hash of the options, which `is_as_made` compares; return self."""
        self._original_object_hash = hash(self)
        return self

    @property
    def is_as_made(self) -> bool:
        """Whether the options are as they were when the configuration was read from a file or made from a model's."""
        return self._original_object_hash == hash(self)

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | os.PathLike[str],
        config_file_name: str | None = None,
        *,
        return_unused_kwargs: Literal[False] = False,
        **kwargs: Any,
    ) -> GenerationConfig: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | os.PathLike[str],
        config_file_name: str | None = None,
        *,
        return_unused_kwargs: Literal[True],
        **kwargs: Any,
    ) -> tuple[GenerationConfig, dict[str, Any]]: ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | os.PathLike[str],
        config_file_name: str | None = None,
        *,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> GenerationConfig | tuple[GenerationConfig, dict[str, Any]]:
        """Read `generation_config.json` (or another file) from a folder or the hub.

        Args:
            pretrained_model_name: folder, packaged model or hub repository.
            config_file_name: name of the file.
            return_unused_kwargs: return the pair of configuration and unused kwargs (see `from_dict`).
            **kwargs: lookup arguments (see `HubOptions`) and options that win over the file's.

        Raises:
            CheckpointNotFoundError: there is no such file.
            CheckpointFormatError: the file is not JSON, or not a dictionary.
        """
        name = config_file_name or GENERATION_CONFIG_NAME
        path = HubOptions.pop_from(kwargs).locate(pretrained_model_name, name)
        content = {**read_json(path), "_commit_hash": commit_of(path)}
        config, unused = cls.from_dict(content, return_unused_kwargs=True, **kwargs)
        config.as_made()
        return (config, unused) if return_unused_kwargs else config

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        config_file_name: str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write the options that differ from the defaults to `generation_config.json` in a folder.

        Args:
            save_directory: folder, made if need be.
            config_file_name: name of the file.
            push_to_hub: also upload it, to the repository `repo_id` or one named like the folder.
            **kwargs: `repo_id`, and options of `push_to_hub`.

        Raises:
            OptionError: options contradict each other or have no effect.
            CheckpointError: the folder is a file.
        """
        self.validate(strict=True)
        folder = folder_to_write(save_directory, f"to write {GENERATION_CONFIG_NAME} to")
        folder.mkdir(parents=True, exist_ok=True)
        upload = Upload.of_save(folder, kwargs) if push_to_hub else None
        self.to_json_file(folder / (config_file_name or GENERATION_CONFIG_NAME))
        if upload is not None:
            upload.finish(self, **kwargs)

    def __eq__(self, other: object) -> bool:
        """Whether all attributes are equal, except those that name the origin."""
        return isinstance(other, GenerationConfig) and _without_metadata(self.to_dict()) == _without_metadata(
            other.to_dict()
        )

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        """Return the class name and the options that differ from the defaults."""
        return f"{type(self).__name__} {_json_text(_without_metadata(self.to_diff_dict()), repr)}"


def eos_ids(config: GenerationConfig) -> list[int]:
    """Return the tokens that end a row as a list: none, one or several."""
    return as_list(config.eos_token_id)


def _unknown(name: str) -> OptionError:
    if name in CALL_ARGUMENTS:
        return OptionError(f"{name!r} is an argument of generate(), not an option of GenerationConfig; pass it there")
    return unknown_option(name, option_types(), "GenerationConfig")


def _without_metadata(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _METADATA}


def _with_dtype_names(value: Any) -> Any:
    """Return `value` with the dtypes that its dictionaries hold under "dtype" as names such as "float16"."""
    if not isinstance(value, dict):
        return value
    return {key: _dtype_name(v) if key == "dtype" else _with_dtype_names(v) for key, v in value.items()}


def _dtype_name(value: Any) -> Any:
    """Return the name of a torch dtype without "torch."; other values unchanged."""
    return str(value).removeprefix("torch.") if str(value).startswith("torch.") else value


def _json_text(options: dict[str, Any], fallback: Callable[[Any], Any]) -> str:
    """Return options as sorted JSON text; `fallback` converts the values that JSON cannot hold."""
    bias = options.get("sequence_bias")
    if isinstance(bias, dict):  # JSON has no tuple keys
        options = options | {"sequence_bias": [[list(ids), value] for ids, value in bias.items()]}
    return json.dumps(options, indent=2, sort_keys=True, default=fallback) + "\n"


def _jsonable(value: Any) -> Any:
    """Return `value` in a form for JSON; raise OptionError for values such as Constraint objects."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if _dtype_name(value) is not value:  # in cache_config
        return _dtype_name(value)
    raise OptionError(f"{value!r} of type {type(value).__name__} cannot be written to a file; pass it to generate()")
