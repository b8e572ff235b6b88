"""Saves models into folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.core import unfreeze
from flax.serialization import to_bytes
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from gptrio.checkpoint.shards import save_shards, warn_if_shadowed
from gptrio.hub import folder_to_write
from gptrio.jax.models.base.pretrained import FlaxPreTrainedModel, Params
from gptrio.uploads import Upload
from gptrio.utils.file_names import FLAX_WEIGHTS_NAME, SAFE_WEIGHTS_NAME


def save_model(
    model: FlaxPreTrainedModel,
    save_directory: str | os.PathLike[str],
    params: Params | None = None,
    push_to_hub: bool = False,
    max_shard_size: int | str = "10GB",
    token: str | bool | None = None,
    safe_serialization: bool = False,
    **kwargs: Any,
) -> None:
    """Write a model's configuration, generation options and parameters into a folder.

    Parameters appear only once they are complete; an error leaves those of an earlier save as they were.

    Args:
        model: the model.
        save_directory: the folder, made if need be.
        params: other parameters than the model's.
        push_to_hub: push what is new in the folder, to the repository `repo_id` or one named like the folder.
        max_shard_size: bytes, or text such as "500MB".
        token: hub access token.
        safe_serialization: write safetensors (under the names of Flax) rather than `flax_model.msgpack`.
        kwargs: `repo_id`, and options of `push_to_hub`.

    Raises:
        CheckpointError: the folder is a file, or cannot be written to.
        OptionError: `max_shard_size` cannot be read.
    """
    folder = folder_to_write(save_directory, "to save a model into")
    if token is not None:
        kwargs["token"] = token
    upload = Upload.of_save(folder, kwargs) if push_to_hub else None
    flat = flatten_dict(unfreeze(model.params if params is None else params), sep="." if safe_serialization else "/")
    base, write = (SAFE_WEIGHTS_NAME, _write_safetensors) if safe_serialization else (FLAX_WEIGHTS_NAME, _write_msgpack)
    save_shards(flat, folder, base, write, max_shard_size)
    if safe_serialization:
        warn_if_shadowed(folder, FLAX_WEIGHTS_NAME, "safetensors")
    model.config.architectures = [type(model).__name__.removeprefix("Flax")]
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    if upload is not None:
        upload.write_card(ignore_metadata_errors=kwargs.pop("ignore_metadata_errors", False))
        upload.finish(model, **kwargs)


def _write_msgpack(path: Path, arrays: Mapping[str, Array]) -> None:
    path.write_bytes(to_bytes(unflatten_dict(dict(arrays), sep="/")))


def _write_safetensors(path: Path, arrays: Mapping[str, Array]) -> None:
    from safetensors.flax import save_file

    save_file(dict(arrays), path, {"format": "flax"})
