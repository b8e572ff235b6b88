"""The configuration class that all families derive from: declared fields, and the files that hold them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, overload

from gptrio.config.declared import DeclaredConfig
from gptrio.errors import CheckpointError, ConfigError, UnsupportedError, warn
from gptrio.hub import HubOptions, commit_of, read_json, replace_file
from gptrio.uploads import Pushable, Upload

Config = TypeVar("Config", bound="PretrainedConfig")

PathLike = str | os.PathLike[str]
CONFIG_NAME = "config.json"
_SWITCHES = dict.fromkeys(("true", "1", "y", "yes"), True) | dict.fromkeys(("false", "0", "n", "no"), False)


@dataclass(init=False, eq=False, repr=False, kw_only=True)
class PretrainedConfig(DeclaredConfig, Pushable):
    """What a checkpoint says about its model; the families add their own fields.

    Every field is also an attribute under each of its aliases (`attribute_map`). Keys that no field claims are kept as
    attributes and written back. Values are checked at construction and by `validate`.

    Args:
        return_dict: forward returns a `ModelOutput` rather than a tuple.
        output_hidden_states, output_attentions: forward returns them when the call does not say.
        torchscript: for tracing: forward returns tuples.
        dtype: type of the weights, as a name ("bfloat16") or `torch.dtype`; `torch_dtype` is its older name.
        pruned_heads: {layer: [heads]} removed from attention.
        tie_word_embeddings: output and input embeddings are one tensor.
        is_decoder, is_encoder_decoder, add_cross_attention, cross_attention_hidden_size: the role beside an encoder.
        architectures: class names that the weights were saved from.
        num_labels, id2label, label2id: classes of a classification head; each may be given alone.
        problem_type: "regression", "single_label_classification" or "multi_label_classification".
        bos_token_id, pad_token_id, eos_token_id, sep_token_id, decoder_start_token_id: special tokens.
        attn_implementation: "eager", "sdpa" or "flash_attention_2"; not saved.
        name_or_path: where the configuration came from; not saved.
        tokenizer_class, prefix, finetuning_task, task_specific_params, chunk_size_feed_forward, tie_encoder_decoder:
            kept for checkpoints that carry them.

    Raises:
        ConfigError: a value is impossible; the message names field, value and what is accepted.
    """

    sub_configs: ClassVar[dict[str, type[PretrainedConfig]]] = {}  # these families hold no configurations

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
            return_unused_kwargs: also return the keywords that are no configuration attributes.
            kwargs: lookup options (see `gptrio.hub.HubOptions`) and overrides of values.

        Raises:
            CheckpointNotFoundError, CheckpointFormatError: there is no such file, or it is not a JSON object.
            ConfigError: a value is impossible, or the file is of another family.
        """
        values, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        config, unused = cls.from_dict(values, return_unused_kwargs=True, **kwargs)
        config.name_or_path = pretrained_model_name_or_path
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the content of `config.json` and the keywords that are not lookup options."""
        refuse_remote_code(kwargs)
        options = HubOptions.pop_from(kwargs)
        path = Path(pretrained_model_name_or_path)
        if not path.is_file():
            path = options.locate(pretrained_model_name_or_path, CONFIG_NAME)
        return {**read_json(path), "_commit_hash": commit_of(path)}, kwargs

    def update_from_string(self, update_str: str) -> None:
        """Set fields from text such as "n_embd=10,resid_pdrop=0.2,scale_attn_weights=false", in the types they have.

        Raises:
            ConfigError: a name that the configuration lacks, a text that is no value of its type, or an impossible one.
        """
        values = {}
        for pair in update_str.split(","):
            name, _, text = pair.partition("=")
            if not hasattr(self, name):
                raise ConfigError(f"{type(self).__name__} has no field {name!r}; expected name=value pairs with commas")
            values[name] = _value_like(getattr(self, name), name, text)
        self.update(values)

    @classmethod
    def from_json_file(cls: type[Config], json_file: PathLike) -> Config:
        """Read a JSON file written by `to_json_file`."""
        return cls.from_dict(read_json(json_file))

    def to_json_file(self, json_file_path: PathLike, use_diff: bool = True) -> None:
        """Write the configuration as JSON; an old file stays until the new one is complete."""
        with replace_file(json_file_path) as temporary:
            temporary.write_text(self.to_json_string(use_diff), encoding="utf-8")

    def save_pretrained(self, save_directory: PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `config.json` into a folder, made if need be, and push the folder to the hub if asked to.

        Args:
            save_directory: the folder.
            push_to_hub: push what is new in it, to the repository `repo_id` or one named like the folder.
            kwargs: `repo_id`, and options of `push_to_hub`.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise CheckpointError(f"{folder} is a file; expected a folder to save {CONFIG_NAME} into")
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
        """Class name and `config.json`."""
        return f"{type(self).__name__} {json.dumps(self.to_diff_dict(), indent=2, sort_keys=True, default=repr)}\n"


def _value_like(old: object, name: str, text: str) -> bool | int | float | str:
    """Read `text` as a value of the type that `old` has."""
    if isinstance(old, bool):
        if text.lower() not in _SWITCHES:
            raise ConfigError(f"{name}={text!r} is not possible; expected one of {', '.join(_SWITCHES)}")
        return _SWITCHES[text.lower()]
    for kind in (int, float, str):
        if isinstance(old, kind):
            try:
                return kind(text)
            except ValueError as error:
                raise ConfigError(f"{name}={text!r} is not possible; expected {kind.__name__}") from error
    raise ConfigError(f"{name} holds a {type(old).__name__}, which text cannot set; assign the field itself")


def refuse_remote_code(kwargs: dict[str, Any]) -> None:
    """Take `trust_remote_code` out of `kwargs`; raises UnsupportedError if it is true."""
    if kwargs.pop("trust_remote_code", None):
        raise UnsupportedError(
            "trust_remote_code=True is not supported: gptrio never runs code from a checkpoint. Leave it out, and add "
            "a family of your own with AutoConfig.register"
        )
