"""Tensors out of `.bin` and `.pt` files, by torch's restricted unpickler: no code from them ever runs."""

from __future__ import annotations

import os
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from gptrio.checkpoint.pickled_files import named_tensors, refused
from gptrio.checkpoint.reader import way_out
from gptrio.errors import CheckpointFormatError


class TensorDict:
    """Named tensors that are already in memory."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self._tensors)

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor."""
        return self._tensors[name].dtype

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor itself, without its history."""
        return self._tensors[name].detach()


def read_torch_file(path: str | os.PathLike[str]) -> TensorDict:
    """Read a `.bin` or `.pt` file with torch's restricted unpickler, memory-mapped if it is a plain zip.

    Returns:
        The tensors of the dictionary in the file, or of the first dictionary of tensors within it ("state_dict").

    Raises:
        UnsafeCheckpointError: the pickle needs anything but tensors and plain containers.
        CheckpointFormatError: the file is truncated or malformed, or holds no named tensors.
    """
    path = Path(path)
    return TensorDict(_named_tensors(path, _read(path)))


def read_torch_content(path: str | os.PathLike[str]) -> object:
    """All that a torch file holds: tensors, numbers, text, and lists, tuples and dictionaries of them.

    Raises:
        UnsafeCheckpointError, CheckpointFormatError: as for `read_torch_file`.
    """
    return _read(Path(path))


def read_torch_value(path: str | os.PathLike[str], name: str) -> object:
    """What a torch file holds under a name beside its tensors, such as a program's settings; None if nothing.

    Raises:
        UnsafeCheckpointError, CheckpointFormatError: as for `read_torch_file`.
    """
    content = read_torch_content(path)
    return content.get(name) if isinstance(content, Mapping) else None


def _read(path: Path) -> object:
    try:
        mappable = _is_plain_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols; faults raise errors
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path) or _starts_with_pickle(path):
            raise refused(path, _refusal(error)) from error
        raise CheckpointFormatError(f"{path} is not a torch checkpoint{way_out(path)}") from error
    except Exception as error:
        raise CheckpointFormatError(f"{path} is not a whole torch checkpoint: {error}{way_out(path)}") from error


def _named_tensors(path: Path, content: object) -> dict[str, torch.Tensor]:
    tensors = named_tensors(content, torch.Tensor)
    if tensors is None:
        raise CheckpointFormatError(f"{path} holds no dictionary of named tensors; expected a model's state_dict")
    return tensors


def _is_plain_zip(path: Path) -> bool:
    if not zipfile.is_zipfile(path):  # as torch wrote files before 1.6
        return False
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _starts_with_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            return sum(1 for _ in pickletools.genops(file)) > 1
        except Exception:
            return False


def _refusal(error: pickle.UnpicklingError) -> str:
    """Return the one line of torch's long message that says what was refused."""
    lines = [line.strip() for line in str(error).splitlines()]
    found = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return found[-1] if found else lines[0]
