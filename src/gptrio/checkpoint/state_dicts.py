"""Weight files as state dicts, for scripts that load them by themselves."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from gptrio.checkpoint.load import TensorReader, open_checkpoint
from gptrio.checkpoint.locate import WeightFiles
from gptrio.errors import CheckpointNotFoundError, KeyMismatchError
from gptrio.utils.file_names import SAFE_WEIGHTS_NAME, WEIGHTS_NAME


def load_state_dict(
    checkpoint_file: str | os.PathLike[str],
    is_quantized: bool = False,
    map_location: str | torch.device | None = "cpu",
    weights_only: bool = True,
) -> dict[str, Tensor]:
    """The tensors of a weight file of any format, by name; memory-mapped on the CPU where the format allows.

    Args:
        checkpoint_file: one file.
        is_quantized: accepted; makes no difference.
        map_location: device of the tensors; "meta" gives shapes and dtypes alone.
        weights_only: accepted; code in a file never runs.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointFormatError, UnsafeCheckpointError: it is malformed, or needs code.
    """
    path = Path(checkpoint_file)
    if not path.is_file():
        raise CheckpointNotFoundError(f"no file {path}; expected a weight file such as {SAFE_WEIGHTS_NAME}")
    reader = TensorReader(WeightFiles((path,)))
    names = reader.keys()
    return {name: reader.tensor(name).to(map_location or "cpu") for name in names}


def load_sharded_checkpoint(
    model: nn.Module, folder: str | os.PathLike[str], strict: bool = True, prefer_safe: bool = True
) -> nn.modules.module._IncompatibleKeys:
    """Copy the tensors of a folder's checkpoint into a module, shard by shard; one file without an index is read too.

    Args:
        model: its parameters keep their dtypes and devices.
        folder: of the weights.
        strict: refuse a checkpoint that lacks keys of the model, or has others.
        prefer_safe: safetensors files before torch files; the other way round if False.

    Returns:
        `missing_keys` and `unexpected_keys`, as torch's `load_state_dict` returns them.

    Raises:
        KeyMismatchError: keys differ, with `strict`; nothing is loaded then.
        CheckpointNotFoundError: there are no weights in the folder.
    """
    names = (SAFE_WEIGHTS_NAME, WEIGHTS_NAME) if prefer_safe else (WEIGHTS_NAME, SAFE_WEIGHTS_NAME)
    reader = open_checkpoint(folder, names=names)
    stored, expected = reader.keys(), model.state_dict().keys()
    missing = [key for key in expected if key not in set(stored)]
    unexpected = [key for key in stored if key not in expected]
    if strict and (missing or unexpected):
        raise KeyMismatchError(
            f"the checkpoint in {os.fspath(folder)} does not fit {type(model).__name__}: missing {missing}, "
            f"unexpected {unexpected}; pass strict=False to load the others"
        )
    for _, keys in reader.keys_by_file():
        model.load_state_dict({key: reader.tensor(key) for key in keys}, strict=False)
    return nn.modules.module._IncompatibleKeys(missing, unexpected)
