"""Every option of `generate`, declared once with type, default and help, and its files. No torch is loaded here."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints, overload

from gptrio.errors import CheckpointError, OptionError, warn
from gptrio.generation.declared import CompileConfig, GenerationMode, GenerationOptions
from gptrio.generation.options import check_option, unknown_option
from gptrio.generation.rules import check_conflicts, ignored_options
from gptrio.generation.watermark.config import watermarking_from
from gptrio.hub import HubOptions, locate_file, read_json, replace_file, save_and_push

if TYPE_CHECKING:
    from gptrio.config.base import PretrainedConfig

CONFIG_FILE = "generation_config.json"
_METADATA = ("_from_model_config", "_commit_hash", "_original_object_hash", "transformers_version")
_CALL_ARGUMENTS = (
    "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model", "streamer",
    "negative_prompt_ids", "negative_prompt_attention_mask", "use_model_defaults",
)  # fmt: skip


@dataclasses.dataclass(init=False, eq=False, repr=False)
class GenerationConfig(GenerationOptions):
    """The options of `generate`: pass them by name; unknown names, wrong types and contradictions raise OptionError.

    `dataclasses.fields(GenerationConfig)` lists them; each field's `metadata["help"]` says what it does. Keys of a file
    that are no options are kept: they are attributes too, and are written back.
    """

    def __init__(self, **options: Any) -> None:
        """Take options by name; the others have their defaults."""
        known = _types()
        for name in options:
            if name not in known and name not in _METADATA:
                raise _unknown(name)
        self._from_model_config: bool = options.pop("_from_model_config", False)
        self._kept: dict[str, Any] = {name: options[name] for name in ("transformers_version",) if name in options}
        for field in dataclasses.fields(self):
            setattr(self, field.name, _plain(field.name, options.get(field.name, field.default)))
        self.check()

    def __getattr__(self, name: str) -> Any:
        """Return a key of a file that is no option."""
        kept: dict[str, Any] = vars(self).get("_kept", {})
        if name in kept:
            return kept[name]
        raise AttributeError(name if name.startswith("_") else str(_unknown(name)))

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an option, or a key of a file that is no option."""
        kept: dict[str, Any] = vars(self).get("_kept", {})
        if name in kept:
            kept[name] = value
        else:
            super().__setattr__(name, value)

    # checks
    def check(self) -> None:
        """Raise OptionError for unknown options, wrong types, values out of range and contradictions."""
        hints = _types()
        strays = vars(self).keys() - hints.keys() - {"_from_model_config", "_kept"}
        if strays:
            raise _unknown(min(strays))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not field.default:
                check_option(field, value, hints[field.name])
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
        """Return the decoding mode that these options ask for; warn when a draft or DoLa cannot be combined with it."""
        mode = self._base_mode()
        single = mode in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
        drafts = (assistant_model, self.prompt_lookup_num_tokens, self.assistant_early_exit)
        asked = {
            GenerationMode.ASSISTED_GENERATION: any(draft is not None for draft in drafts),
            GenerationMode.DOLA_GENERATION: self.dola_layers is not None,
        }
        for special in (special for special, wanted in asked.items() if wanted):
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
        """Set the options that exist and return the arguments that are none; an error leaves the config unchanged."""
        names = _types().keys() | self._kept.keys()
        changed = copy.copy(self)
        changed._kept = dict(self._kept)
        for name, value in options.items():
            if name in names:
                setattr(changed, name, _plain(name, value))
        changed.check()
        vars(self).update(vars(changed))
        return {name: value for name, value in options.items() if name not in names}

    # dictionaries and files
    def to_dict(self) -> dict[str, Any]:
        """Return all options and kept keys as a new dictionary (without `compile_config`, which is of this machine)."""
        names = [name for name in _types() if name != "compile_config"]
        result = copy.deepcopy({name: getattr(self, name) for name in names} | self._kept)
        if self._from_model_config:
            result["_from_model_config"] = True
        return result

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults, and the kept keys."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: v for name, v in self.to_dict().items() if name not in defaults or v != defaults[name]}

    def to_json_string(self, use_diff: bool = True, ignore_metadata: bool = False) -> str:
        """Return the options as JSON; raise OptionError for values that it cannot hold, such as Constraint objects."""
        return _dump(self.to_diff_dict() if use_diff else self.to_dict(), ignore_metadata, _jsonable)

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write the options to a JSON file, all of it or nothing."""
        with replace_file(json_file_path) as partial:
            partial.write_text(self.to_json_string(use_diff), encoding="utf-8")

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
            The configuration, or with `return_unused_kwargs` the pair of it and the kwargs that are no options.

        Raises:
            OptionError: a value is wrong, or a kwarg is no option and `return_unused_kwargs` is False.
        """
        return cls._from_file(config_dict, return_unused_kwargs, kwargs)

    @classmethod
    def _from_file(
        cls, config_dict: dict[str, Any], return_unused_kwargs: bool, kwargs: dict[str, Any]
    ) -> GenerationConfig | tuple[GenerationConfig, dict[str, Any]]:
        known = _types().keys() | {"_from_model_config"}
        unused = {name: value for name, value in kwargs.items() if name not in known}
        if unused and not return_unused_kwargs:
            raise _unknown(next(iter(unused)))
        merged = config_dict | {name: value for name, value in kwargs.items() if name in known}
        config = cls(**{name: value for name, value in merged.items() if name in known})
        config._kept = {name: merged[name] for name in merged if name not in known and not name.startswith("_")}
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def from_model_config(cls, model_config: PretrainedConfig) -> GenerationConfig:
        """Build from the generation options that an older model's `config.json` holds."""
        held = model_config.to_dict().items()
        options = {name: value for name, value in held if name in _types() and value is not None}
        if any(options.get(flag) for flag in cls.extra_output_flags):
            options["return_dict_in_generate"] = True
        return cls(**options, _from_model_config=True)

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
            return_unused_kwargs: return the pair of configuration and kwargs that are no options.
            **kwargs: lookup arguments (see `HubOptions`) and options that win over the file's.

        Raises:
            CheckpointNotFoundError: there is no such file.
            CheckpointFormatError: the file is not JSON, or not a dictionary.
        """
        name = config_file_name or CONFIG_FILE
        path = locate_file(pretrained_model_name, name, **HubOptions.pop_from(kwargs).as_kwargs())
        assert path is not None  # required files raise
        config_dict = read_json(path)
        return cls._from_file(config_dict, return_unused_kwargs, kwargs)

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
            push_to_hub: also upload it (`repo_id` and the options of `gptrio.hub.push_folder` in kwargs).
            **kwargs: options of the upload.

        Raises:
            OptionError: options contradict each other or have no effect.
            CheckpointError: the folder is a file.
        """
        self.validate(strict=True)
        folder = Path(save_directory)
        if folder.is_file():
            raise CheckpointError(f"{folder} is a file; expected a folder to write {CONFIG_FILE} to")
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / (config_file_name or CONFIG_FILE))
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), config_file_name, **kwargs)

    def push_to_hub(self, repo_id: str, config_file_name: str | None = None, **options: Any) -> str:
        """Upload the file to a hub repository (options of `gptrio.hub.push_folder`); return the commit's address."""
        return save_and_push(lambda folder: self.save_pretrained(folder, config_file_name), repo_id, **options)

    def __eq__(self, other: object) -> bool:
        """Equal options and kept keys, wherever they came from."""
        return isinstance(other, GenerationConfig) and _without_metadata(self) == _without_metadata(other)

    def __hash__(self) -> int:
        """Hash of the text that `repr` gives."""
        return hash(repr(self))

    def __repr__(self) -> str:
        """Return the class name and the options that differ from the defaults."""
        return f"{type(self).__name__} {_dump(self.to_diff_dict(), True, repr)}"


@lru_cache(maxsize=1)
def _types() -> dict[str, Any]:
    """Option -> type, in order of declaration."""
    hints = get_type_hints(GenerationOptions)
    return {field.name: hints[field.name] for field in dataclasses.fields(GenerationOptions)}


def _unknown(name: str) -> OptionError:
    if name in _CALL_ARGUMENTS:
        return OptionError(f"{name!r} is an argument of generate(), not an option of GenerationConfig; pass it there")
    return unknown_option(name, _types(), "GenerationConfig")


def _plain(name: str, value: Any) -> Any:
    """Turn what files and callers may hold in an option's place into the option's own type."""
    if hasattr(value, "tolist"):  # arrays and tensors of token ids
        return value.tolist()
    if not isinstance(value, dict):
        return value
    if name == "watermarking_config":
        return watermarking_from(value)
    if name == "compile_config":
        return CompileConfig(**value)
    if name == "sequence_bias":  # JSON turns the key (1, 2) into "(1, 2)"
        return {_token_ids(key) if isinstance(key, str) else key: bias for key, bias in value.items()}
    return value


def _token_ids(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.strip("()").split(",") if part.strip())
    except ValueError as error:
        raise OptionError(f"sequence_bias has the key {text!r}; expected token ids such as '(1, 2)'") from error


def _without_metadata(config: GenerationConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _METADATA}


def _dump(options: dict[str, Any], ignore_metadata: bool, fallback: Callable[[Any], Any]) -> str:
    if ignore_metadata:
        options = {name: value for name, value in options.items() if name not in _METADATA}
    bias = options.get("sequence_bias")
    if isinstance(bias, dict):  # JSON has no tuple keys
        options = options | {"sequence_bias": [[list(ids), value] for ids, value in bias.items()]}
    return json.dumps(options, indent=2, sort_keys=True, default=fallback) + "\n"


def _jsonable(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if str(value).startswith("torch."):  # a dtype in cache_config
        return str(value).removeprefix("torch.")
    raise OptionError(f"{value!r} of type {type(value).__name__} cannot be written to a file; pass it to generate()")
