"""Arrays of any library into the files of a checkpoint: in shards with an index, and never half-written.

Loads no torch.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, TypeVar

from gptrio.checkpoint.locate import variant_name
from gptrio.errors import OptionError, warn
from gptrio.hub import folder_to_write, replace_file

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


class Sized(Protocol):
    """What `save_shards` needs of an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""


Array = TypeVar("Array", bound=Sized)


def save_shards(
    tensors: Mapping[str, Array],
    folder: str | os.PathLike[str],
    base: str,
    write_file: Callable[[Path, dict[str, Array]], None],
    max_shard_size: int | str = "5GB",
    variant: str | None = None,
    shared: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write arrays into a folder as one file, or as shards with an index.

    Files appear under their names only once all of them are complete; on an error the folder is as before. Files of an
    earlier save of the same kind and variant that are no longer part of the checkpoint are removed at the end.

    Args:
        tensors: arrays by name.
        folder: made if need be.
        base: name of a single file, such as "model.safetensors".
        write_file: writes a file of arrays by name.
        max_shard_size: bytes, or text such as "500MB"; one array is never split.
        variant: middle part of the file names, such as "fp16".
        shared: further names of arrays, each written beside the first: name -> first name.

    Returns:
        The files written, the index included.

    Raises:
        CheckpointError: the folder is a file.
        OptionError: `max_shard_size` cannot be read.
    """
    folder, shared = folder_to_write(folder, "to save weights into"), shared or {}
    shards = _name_shards(_split(tensors, parse_size(max_shard_size)), base, variant)
    shards = {
        file: [*keys, *(also for also, first in shared.items() if first in keys)] for file, keys in shards.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as replaced_at_the_end:
        written = []
        if len(shards) > 1:  # entered first, so that it is replaced last
            index = folder / variant_name(f"{base}.index.json", variant)
            temporary = replaced_at_the_end.enter_context(replace_file(index))
            temporary.write_text(_index_text(tensors, shards), encoding="utf-8")
            written.append(index)
        for name, keys in shards.items():
            temporary = replaced_at_the_end.enter_context(replace_file(folder / name))
            write_file(temporary, {key: tensors[shared.get(key, key)] for key in keys})
            written.append(folder / name)
    for path in stale_files(folder, base, variant, keep={path.name for path in written}):
        path.unlink()
    return written


def parse_size(size: int | str) -> int:
    """Return a number of bytes from a number or text such as "5GB" or "200 MiB"; raises OptionError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise OptionError(f"max_shard_size={size!r} is not possible; expected bytes, or text such as '500MB' or '5GB'")
    return int(float(match[1]) * unit)


def _split(tensors: Mapping[str, Array], limit: int) -> list[list[str]]:
    """Fill shards in order up to `limit` bytes each."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def _name_shards(shards: list[list[str]], base: str, variant: str | None) -> dict[str, list[str]]:
    name = variant_name(base, variant)
    if len(shards) == 1:
        return {name: shards[0]}
    stem, _, extension = name.rpartition(".")
    return {f"{stem}-{i:05d}-of-{len(shards):05d}.{extension}": keys for i, keys in enumerate(shards, start=1)}


def _index_text(tensors: Mapping[str, Array], shards: Mapping[str, list[str]]) -> str:
    parameters = sum(math.prod(tensor.shape) for tensor in tensors.values())
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {
        "metadata": {"total_parameters": parameters, "total_size": size},
        "weight_map": {key: name for name, keys in shards.items() for key in keys},
    }
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def stale_files(folder: Path, base: str, variant: str | None, keep: set[str]) -> list[Path]:
    """Files of earlier saves of a kind and variant, such as "model.safetensors", other than those to keep."""
    stem, _, extension = map(re.escape, variant_name(base, variant).rpartition("."))
    index = re.escape(variant_name(f"{base}.index.json", variant))
    old = re.compile(rf"{stem}(-\d{{5}}-of-\d{{5}})?\.{extension}|{index}")
    return [path for path in folder.iterdir() if old.fullmatch(path.name) and path.name not in keep]


def warn_if_shadowed(folder: str | os.PathLike[str], base: str, kind: str, variant: str | None = None) -> None:
    """Warn of files that loading prefers to those just saved.

    Args:
        folder: where the checkpoint was saved.
        base: name of a single file of the preferred kind.
        kind: of the file just saved, for the message.
        variant: middle part of the file names.
    """
    for name in (base, f"{base}.index.json"):
        path = Path(folder) / variant_name(name, variant)
        if path.exists():
            warn(f"{path} is older than the {kind} file just saved, but loading prefers it; delete it")
