"""Which files have the weights of a model, and which tensors are in which file. Loads no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gptrio.errors import CheckpointFormatError, CheckpointNotFoundError, UnsafeCheckpointError
from gptrio.hub import HubOptions, local_folder, read_json
from gptrio.utils.file_names import FLAX_WEIGHTS_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME

FOREIGN_NAMES = {"tf_model.h5": "TensorFlow", "model.ckpt.index": "TensorFlow 1"}
_PLAIN_FILE_NAME = re.compile(r"(?!\.+$)[^/\\:\0]+")


@dataclass(frozen=True)
class WeightFiles:
    """The files of a checkpoint.

    Args:
        paths: the files, in reading order.
        weight_map: tensor name -> file, for a checkpoint with an index; None for a single file.
    """

    paths: tuple[Path, ...]
    weight_map: dict[str, Path] | None = None


def locate_weights(
    name_or_path: str | os.PathLike[str],
    *,
    names: Sequence[str] = (SAFE_WEIGHTS_NAME, WEIGHTS_NAME),
    use_safetensors: bool | None = None,
    variant: str | None = None,
    options: HubOptions | None = None,
) -> WeightFiles:
    """Find the weights of a model: safetensors before torch files, one file before shards with an index.

    Args:
        name_or_path: folder, packaged name or hub id; or a single weight file of any name.
        names: the files to look for, in this order.
        use_safetensors: True refuses torch files, False ignores safetensors files, None reads either.
        variant: middle part of the file names, such as "fp16" in `model.fp16.safetensors`.
        options: lookup options.

    Raises:
        CheckpointNotFoundError: there are no weights, or a file that the index names is missing.
        CheckpointFormatError: the index is malformed.
        UnsafeCheckpointError: the index names a file outside its folder.
    """
    if Path(name_or_path).is_file():
        return WeightFiles((Path(name_or_path),))
    options = options or HubOptions()
    unwanted = {None: "", True: WEIGHTS_NAME, False: SAFE_WEIGHTS_NAME}[use_safetensors]
    names = [name for name in names if name != unwanted]
    for name in names:
        path = options.find(name_or_path, variant_name(name, variant))
        if path is not None:
            return WeightFiles((path,))
        index = options.find(name_or_path, variant_name(f"{name}.index.json", variant))
        if index is not None:
            return _read_index(name_or_path, index, Path(name).suffix, options)
    raise CheckpointNotFoundError(_message(name_or_path, names, variant, options))


def _message(
    name_or_path: str | os.PathLike[str], names: Sequence[str], variant: str | None, options: HubOptions
) -> str:
    """Say that there are no weights, and what to do about those of another kind."""
    expected = " or ".join(f"{variant_name(name, variant)} (or its .index.json)" for name in names)
    folder = local_folder(name_or_path)
    where = f"hub repository {os.fspath(name_or_path)!r}" if folder is None else f"folder {folder / options.subfolder}"
    foreign = [name for name in FOREIGN_NAMES if options.find(name_or_path, name) is not None]
    makers = " and ".join(FOREIGN_NAMES[name] for name in foreign)
    way_out = "check variant, subfolder, use_safetensors"
    if FLAX_WEIGHTS_NAME not in names and options.find(name_or_path, FLAX_WEIGHTS_NAME) is not None:
        way_out = f"it holds {FLAX_WEIGHTS_NAME}, weights of Flax: pass from_flax=True"
    elif foreign:
        way_out = (
            f"it holds {', '.join(foreign)}, weights of {makers} that gptrio does not read: load them with "
            "Transformers and from_tf=True, and save_pretrained writes safetensors"
        )
    return f"no weights in {where}: expected {expected}; {way_out}"


def variant_name(name: str, variant: str | None) -> str:
    """Put a variant before the last extension: "model.safetensors", "fp16" -> "model.fp16.safetensors"."""
    if not variant:
        return name
    stem, _, extension = name.rpartition(".")
    return f"{stem}.{variant}.{extension}"


def _read_index(name_or_path: str | os.PathLike[str], index: Path, suffix: str, options: HubOptions) -> WeightFiles:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointFormatError(f"{index} has no weight_map of tensor names to file names")
    options = options.pinned_to(index)
    paths: dict[str, Path] = {}
    for file_name in dict.fromkeys(map(str, weight_map.values())):
        if not _PLAIN_FILE_NAME.fullmatch(file_name):
            raise UnsafeCheckpointError(f"{index} names {file_name!r}; expected plain names of files beside it")
        if not file_name.endswith(suffix):
            raise CheckpointFormatError(f"{index} names {file_name!r}; expected {suffix} files")
        path = options.find(name_or_path, file_name)
        if path is None:
            raise CheckpointNotFoundError(f"shard {file_name} is missing beside {index}; fetch the checkpoint again")
        paths[file_name] = path
    return WeightFiles(tuple(paths.values()), {name: paths[str(file)] for name, file in weight_map.items()})
