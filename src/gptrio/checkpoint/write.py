"""Tensors into checkpoint files: in shards, shared ones once, and never half-written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

from gptrio.checkpoint.locate import SAFETENSORS_NAME, TORCH_NAME, variant_name
from gptrio.errors import CheckpointError, OptionError, warn
from gptrio.hub import replace_file

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def save_state_dict(
    state_dict: Mapping[str, torch.Tensor],
    folder: str | os.PathLike[str],
    max_shard_size: int | str = "5GB",
    safe_serialization: bool = True,
    variant: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write tensors into a folder as one file, or as shards with an index.

    Files appear under their names only once all of them are complete; on an error the folder is as before. Files of an
    earlier save of the same kind and variant that are no longer part of the checkpoint are removed at the end.

    Args:
        state_dict: tensors by name; one that several names share is stored once: under the first in safetensors, under
            all of them in a torch file.
        folder: made if need be.
        max_shard_size: bytes, or text such as "500MB"; one tensor is never split.
        safe_serialization: write safetensors rather than a torch file.
        variant: middle part of the file names, such as "fp16".
        metadata: entries for the header of a safetensors file; {"format": "pt"} when None.

    Returns:
        The files written, the index included.

    Raises:
        CheckpointError: the folder is a file, or a tensor has no data.
        OptionError: `max_shard_size` cannot be read.
    """
    folder = Path(folder)
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; expected a folder to save weights into")
    limit = parse_size(max_shard_size)
    tensors, shared = _unique_tensors(state_dict)
    base = SAFETENSORS_NAME if safe_serialization else TORCH_NAME
    shards = _name_shards(_split(tensors, limit), base, variant)
    if not safe_serialization:
        shards = {
            file: [*keys, *(also for also, first in shared.items() if first in keys)] for file, keys in shards.items()
        }
    folder.mkdir(parents=True, exist_ok=True)
    header = dict(metadata or {"format": "pt"})
    with ExitStack() as replaced_at_the_end:
        written = []
        if len(shards) > 1:  # entered first, so that it is replaced last
            index = folder / variant_name(f"{base}.index.json", variant)
            temporary = replaced_at_the_end.enter_context(replace_file(index))
            temporary.write_text(_index_text(tensors, shards), encoding="utf-8")
            written.append(index)
        for name, keys in shards.items():
            temporary = replaced_at_the_end.enter_context(replace_file(folder / name))
            content = {key: tensors[shared.get(key, key)] for key in keys}
            _write_file(temporary, content, header if safe_serialization else None)
            written.append(folder / name)
    _remove_stale(folder, base, variant, keep={path.name for path in written})
    if not safe_serialization:
        _warn_if_shadowed(folder, variant)
    return written


def parse_size(size: int | str) -> int:
    """Return a number of bytes from a number or text such as "5GB" or "200 MiB"; raises OptionError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise OptionError(f"max_shard_size={size!r} is not possible; expected bytes, or text such as '500MB' or '5GB'")
    return int(float(match[1]) * unit)


def _unique_tensors(state_dict: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors by their first name, and {name that shares a whole tensor with an earlier name: that name}."""
    unique: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    names: dict[object, str] = {}
    for name, tensor in state_dict.items():
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{name} is a {type(tensor).__name__}; checkpoints hold tensors only; make get_extra_state return one"
            )
        if tensor.is_meta:
            raise CheckpointError(f"tensor {name} is on the meta device: it has no data to save")
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        first = names.setdefault(memory, name) if tensor.numel() else name
        if first == name:
            unique[name] = tensor.detach()
        else:
            shared[name] = first
    return unique, shared


def _split(tensors: Mapping[str, torch.Tensor], limit: int) -> list[list[str]]:
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


def _index_text(tensors: Mapping[str, torch.Tensor], shards: Mapping[str, list[str]]) -> str:
    parameters = sum(tensor.numel() for tensor in tensors.values())
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {
        "metadata": {"total_parameters": parameters, "total_size": size},
        "weight_map": {key: name for name, keys in shards.items() for key in keys},
    }
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def _write_file(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None) -> None:
    """Write a torch file, or with `metadata` a safetensors file."""
    if metadata is None:
        stored = {id(tensor): _without_surroundings(tensor.cpu().contiguous()) for tensor in tensors.values()}
        torch.save({name: stored[id(tensor)] for name, tensor in tensors.items()}, path)
        return
    plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    from safetensors.torch import save_file

    end = 0
    for name in sorted(plain, key=lambda name: plain[name].data_ptr()):
        if plain[name].data_ptr() < end:  # overlaps the one before, which the format cannot express
            plain[name] = plain[name].clone()
        else:
            end = plain[name].data_ptr() + plain[name].nbytes
    save_file(plain, path, metadata)


def _without_surroundings(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a view of a larger storage, all of which torch would save."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _remove_stale(folder: Path, base: str, variant: str | None, keep: set[str]) -> None:
    stem, _, extension = map(re.escape, variant_name(base, variant).rpartition("."))
    index = re.escape(variant_name(f"{base}.index.json", variant))
    old = re.compile(rf"{stem}(-\d{{5}}-of-\d{{5}})?\.{extension}|{index}")
    for path in folder.iterdir():
        if old.fullmatch(path.name) and path.name not in keep:
            path.unlink()


def _warn_if_shadowed(folder: Path, variant: str | None) -> None:
    for name in (SAFETENSORS_NAME, f"{SAFETENSORS_NAME}.index.json"):
        path = folder / variant_name(name, variant)
        if path.exists():
            warn(f"{path} is older than the torch file just saved, but loading prefers it; delete it")
