"""Tensors into checkpoint files: in shards, shared ones once, and never half-written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from gptrio.checkpoint.shards import save_shards, warn_if_shadowed
from gptrio.errors import CheckpointError
from gptrio.utils.file_names import SAFE_WEIGHTS_NAME, WEIGHTS_NAME


def save_state_dict(
    state_dict: Mapping[str, torch.Tensor],
    folder: str | os.PathLike[str],
    max_shard_size: int | str = "5GB",
    safe_serialization: bool = True,
    variant: str | None = None,
    save_function: Callable[[dict[str, torch.Tensor], str], object] = torch.save,
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
        save_function: writes the tensors of a torch file, given with its path under which it is first written.

    Returns:
        The files written, the index included.

    Raises:
        CheckpointError: the folder is a file, or a tensor has no data.
        OptionError: `max_shard_size` cannot be read.
    """
    tensors, shared = _unique_tensors(state_dict)
    if safe_serialization:
        return save_shards(tensors, folder, SAFE_WEIGHTS_NAME, _write_safetensors, max_shard_size, variant)
    write = partial(_write_torch_file, save_function)
    written = save_shards(tensors, folder, WEIGHTS_NAME, write, max_shard_size, variant, shared)
    warn_if_shadowed(folder, SAFE_WEIGHTS_NAME, "torch", variant)
    return written


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
        if hasattr(tensor, "to_local"):
            raise CheckpointError(
                f"tensor {name} is divided among processes; Trainer.save_model puts the model together and writes it"
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


def _write_torch_file(save_function: Callable[..., object], path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    stored = {id(tensor): _without_surroundings(tensor.cpu().contiguous()) for tensor in tensors.values()}
    save_function({name: stored[id(tensor)] for name, tensor in tensors.items()}, str(path))
    if not path.exists():
        raise CheckpointError(f"save_function wrote no file at {path}, the path that it was given")


def _write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    end = 0
    for name in sorted(plain, key=lambda name: plain[name].data_ptr()):
        if plain[name].data_ptr() < end:  # overlaps the one before, which the format cannot express
            plain[name] = plain[name].clone()
        else:
            end = plain[name].data_ptr() + plain[name].nbytes
    try:
        save_file(plain, path, {"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _without_surroundings(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a view of a larger storage, all of which torch would save."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
