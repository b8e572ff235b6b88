"""The configuration that a call of `from_pretrained` loads a model by. Loads no torch."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from typing import Any

from gptrio.config.auto import as_own_config
from gptrio.config.base import PretrainedConfig
from gptrio.errors import OptionError
from gptrio.hub import HubOptions, local_folder
from gptrio.utils.file_names import CONFIG_NAME


def read_config(
    config_class: type[PretrainedConfig],
    config: PretrainedConfig | str | os.PathLike[str] | None,
    name_or_path: str | os.PathLike[str] | None,
    options: HubOptions,
    overrides: dict[str, Any],
) -> tuple[PretrainedConfig, dict[str, Any]]:
    """The configuration with overrides applied, and the overrides that it does not have."""
    config = as_own_config(config)
    if isinstance(config, PretrainedConfig):
        config = copy.deepcopy(config)  # the caller's is not changed
        known = {key: value for key, value in overrides.items() if hasattr(config, key)}
        for key, value in known.items():
            setattr(config, key, value)
        config.validate()
        return config, {key: value for key, value in overrides.items() if key not in known}
    where = config or name_or_path
    if where is None:
        raise OptionError("from_pretrained needs a name, a folder, or config and state_dict")
    return config_class.from_pretrained(where, return_unused_kwargs=True, **options.as_kwargs(), **overrides)


def pinned(options: HubOptions, config: PretrainedConfig, name_or_path: str | os.PathLike[str] | None) -> HubOptions:
    """The lookup options for the commit that the configuration was read from, or the repository's current commit."""
    if name_or_path is None or os.path.isfile(name_or_path) or local_folder(name_or_path) is not None:
        return options
    if config._commit_hash is not None and config.name_or_path == os.fspath(name_or_path):
        return replace(options, revision=config._commit_hash)
    config_file = options.find(name_or_path, CONFIG_NAME)
    return options if config_file is None else options.pinned_to(config_file)
