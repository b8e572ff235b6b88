"""Saves models into folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptrio.checkpoint.write import save_state_dict
from gptrio.errors import warn
from gptrio.hub import folder_to_write
from gptrio.models.base.adapters import save_adapter
from gptrio.models.base.pretrained import PreTrainedModel
from gptrio.uploads import Upload


def save_model(
    model: PreTrainedModel,
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    save_function: Callable[..., None] | None = None,
    push_to_hub: bool = False,
    max_shard_size: int | str = "5GB",
    safe_serialization: bool = True,
    variant: str | None = None,
    token: str | bool | None = None,
    save_peft_format: bool = True,
    **kwargs: Any,
) -> None:
    """Write a model's configuration, generation options and weights into a folder.

    Of a model with adapters (`add_adapter`, `load_adapter`) only the active adapter is written, as in Transformers.

    Weights appear only once they are complete; an error leaves those of an earlier save as they were.

    Args:
        model: the model.
        save_directory: the folder, made if need be.
        is_main_process: write only if true (distributed training).
        state_dict: tensors to write instead of the model's own.
        save_function: writes each torch file, given its tensors and its path; `torch.save` if None.
        push_to_hub: push what is new in the folder, to the repository `repo_id` or one named like the folder.
        max_shard_size: bytes, or text such as "500MB".
        safe_serialization: write safetensors rather than a torch file.
        variant: middle part of the file names, such as "fp16".
        token: hub access token.
        save_peft_format: name an adapter's tensors as PEFT does, rather than as the model does.
        kwargs: `repo_id`, and options of `push_to_hub`.

    Raises:
        CheckpointError: the folder is a file, or cannot be written to.
    """
    folder = folder_to_write(save_directory, "to save a model into")
    if not is_main_process:
        return
    if not model._hf_peft_config_loaded:
        _move_generation_keys(model)
    if model.generation_config is not None:
        model.generation_config.validate(strict=True)  # before anything is written
    if token is not None:
        kwargs["token"] = token
    upload = Upload.of_save(folder, kwargs) if push_to_hub else None
    if model._hf_peft_config_loaded:
        save_adapter(model, folder, state_dict, safe_serialization, save_peft_format)
    else:
        _save_weights(model, folder, state_dict, max_shard_size, safe_serialization, variant, save_function)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    if upload is not None:
        upload.write_card(model.model_tags or (), kwargs.pop("ignore_metadata_errors", False))
        upload.finish(model, **kwargs)


def _move_generation_keys(model: PreTrainedModel) -> None:
    """Move options of `generate` that were set on the configuration to the generation configuration, with a warning."""
    misplaced = model.config._get_non_default_generation_parameters()
    if model.generation_config is None or not misplaced:
        return
    given = ", ".join(f"{name}={value!r}" for name, value in misplaced.items())
    warn(f"{given} moved from the model's configuration to its generation_config, where options of generate belong")
    for name, value in misplaced.items():
        setattr(model.generation_config, name, value)
        setattr(model.config, name, None)


def _save_weights(
    model: PreTrainedModel,
    folder: Path,
    state_dict: Mapping[str, Tensor] | None,
    max_shard_size: int | str,
    safe_serialization: bool,
    variant: str | None,
    save_function: Callable[..., None] | None,
) -> None:
    """Write the weights, then the configuration."""
    tensors = dict(model.state_dict() if state_dict is None else state_dict)
    if state_dict is None and safe_serialization:  # a torch file has both names of one tensor
        for tied in model.tied_weights():
            tensors.pop(tied, None)
    for name in model._keys_to_ignore_on_save or ():
        tensors.pop(name, None)
    save_state_dict(tensors, folder, max_shard_size, safe_serialization, variant, save_function or torch.save)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = model.dtype
    model.config.save_pretrained(folder)
