"""The configuration class of a checkpoint, chosen by the `model_type` in its `config.json`."""

from __future__ import annotations

import os
from typing import Any, cast

from gptrio.config.base import PretrainedConfig
from gptrio.config.gpt2 import GPT2Config
from gptrio.config.gpt_neo import GPTNeoConfig
from gptrio.config.gpt_neox import GPTNeoXConfig
from gptrio.errors import ConfigError, UnsupportedError
from gptrio.foreign import CONFIGURATION, content_of, is_foreign

OWN_CONFIGS: dict[str, type[PretrainedConfig]] = {
    cls.model_type: cls for cls in (GPT2Config, GPTNeoConfig, GPTNeoXConfig)
}


class ConfigMapping(dict[str, type[PretrainedConfig]]):
    """The configuration class of each model type; those registered are included."""

    def register(self, key: str, value: type[PretrainedConfig], exist_ok: bool = False) -> None:
        """Add a configuration class; see `AutoConfig.register`."""
        AutoConfig.register(key, value, exist_ok)


CONFIG_MAPPING = ConfigMapping(OWN_CONFIGS)
CONFIG_MAPPING_NAMES = {model_type: own.__name__ for model_type, own in OWN_CONFIGS.items()}

OWN_ATTENTION = (
    "eager",
    "sdpa",
    "flash_attention_2",
    "flex_attention",
)  # those of Transformers' back ends that gptrio has


def config_class_of(model_type: str) -> type[PretrainedConfig]:
    """Return the configuration class of a family; raises UnsupportedError, which lists the known ones."""
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        known = ", ".join(sorted(CONFIG_MAPPING))
        raise UnsupportedError(
            f"model_type={model_type!r} is a family that gptrio does not have; it has: {known} "
            "(AutoConfig.register adds your own)"
        )
    return CONFIG_MAPPING[model_type]


def as_own_config(given: Any) -> Any:
    """A configuration of Transformers, or a dictionary of one, as ours of the same family; any other object unchanged.

    Raises:
        UnsupportedError, ConfigError: the family is not one of ours.
    """
    if isinstance(given, dict):
        return config_class_of(given.get("model_type", "")).from_dict(given)
    if isinstance(given, PretrainedConfig) or not is_foreign(given, CONFIGURATION):
        return given
    config = config_class_of(given.model_type).from_dict(content_of(given))
    config.name_or_path = given.name_or_path or ""
    if given._attn_implementation in OWN_ATTENTION:
        config._attn_implementation = given._attn_implementation
    return config


def config_for(model_class: Any, given: Any) -> PretrainedConfig:
    """The configuration that a model of a class is built from, as one of this package.

    Raises:
        ConfigError: it is none, or of another family.
        UnsupportedError: the family is not one of ours.
    """
    config = as_own_config(given)
    if not isinstance(config, model_class.config_class):
        raise ConfigError(
            f"{model_class.__name__} needs a {model_class.config_class.__name__}, got {type(config).__name__}; "
            f"{model_class.__name__}.from_pretrained(name) loads a model by name"
        )
    return cast(PretrainedConfig, config)


class AutoConfig:
    """Reads any configuration that gptrio has a class for; not to be instantiated."""

    def __init__(self) -> None:
        raise TypeError("AutoConfig is not instantiated; use its from_pretrained(...) or for_model(...)")

    @classmethod
    def for_model(cls, model_type: str, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """Build a configuration of a family, such as "gpt2", from its arguments."""
        return config_class_of(model_type)(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Read `config.json` and return a configuration of the class its `model_type` names.

        Args:
            pretrained_model_name_or_path: folder, packaged name, hub id, or a JSON file itself.
            kwargs: as for `PretrainedConfig.from_pretrained`, `return_unused_kwargs` included.

        Raises:
            UnsupportedError: the family is not one of ours, or code that the checkpoint has is trusted.
            ConfigError: the file names no family.
        """
        kwargs.pop("code_revision", None)
        values, kwargs = PretrainedConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not values.get("model_type"):  # as in Transformers: the family that the name contains, the longest first
            name = os.fspath(pretrained_model_name_or_path)
            values["model_type"] = next(
                (key for key in sorted(CONFIG_MAPPING, key=len, reverse=True) if key in name), None
            )
        if values["model_type"] is None:
            known = ", ".join(sorted(CONFIG_MAPPING))
            raise ConfigError(
                f"config.json of {name!r} has no model_type; expected one of {known} (or use the family's own class)"
            )
        return_unused_kwargs = kwargs.pop("return_unused_kwargs", False)
        config_class = config_class_of(values["model_type"])
        config, unused = config_class.from_dict(values, return_unused_kwargs=True, **kwargs)
        config.name_or_path = pretrained_model_name_or_path
        return (config, unused) if return_unused_kwargs else config

    @staticmethod
    def register(model_type: str, config: type[PretrainedConfig], exist_ok: bool = False) -> None:
        """Add a configuration class for its `model_type`, in place of one that was added before.

        Raises:
            ConfigError: `model_type` is not the class's, or that of a family of gptrio's (unless `exist_ok`).
        """
        if not issubclass(config, PretrainedConfig) or config.model_type != model_type:
            raise ConfigError(f"{config.__name__} is not a PretrainedConfig with model_type={model_type!r}")
        if not exist_ok and model_type in OWN_CONFIGS:
            taken_by = OWN_CONFIGS[model_type].__name__
            raise ConfigError(f"model_type={model_type!r} is taken by {taken_by}; exist_ok=True replaces it")
        CONFIG_MAPPING[model_type] = config
