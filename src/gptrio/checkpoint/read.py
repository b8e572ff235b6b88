"""Tensors out of checkpoint files, memory-mapped, without ever running code from them."""

from __future__ import annotations

import os
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from gptrio.checkpoint.locate import WeightFiles, locate_weights
from gptrio.errors import CheckpointFormatError, UnsafeCheckpointError
from gptrio.hub import HubOptions

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsFile:
    """A safetensors file; its tensors are private (copy-on-write) views of the memory-mapped file."""

    def __init__(self, path: Path) -> None:
        """Open the file and check its header; raises CheckpointFormatError."""
        self._path = path
        self._file = _open_safetensors(path)
        self._names = dict.fromkeys(self._file.keys())

    def __contains__(self, name: str) -> bool:
        """Tell whether there is such a tensor."""
        return name in self._names

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor, without reading it."""
        code = self._file.get_slice(name).get_dtype()
        if code not in _DTYPES:
            raise CheckpointFormatError(f"{self._path}: tensor {name} has type {code}; expected one of {list(_DTYPES)}")
        return _DTYPES[code]

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor, on the CPU; writing to it never reaches the file."""
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor


class TensorDict:
    """Named tensors that are already in memory."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep the tensors."""
        self._tensors = tensors

    def __contains__(self, name: str) -> bool:
        """Tell whether there is such a tensor."""
        return name in self._tensors

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor."""
        return self._tensors[name].dtype

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor itself, without its history."""
        return self._tensors[name].detach()


class CheckpointReader:
    """All tensors of a checkpoint, in one file or in shards; a shard is opened when it is needed."""

    def __init__(self, files: WeightFiles) -> None:
        """Take the files that `locate_weights` found."""
        self.files = files
        self._open: tuple[Path, SafetensorsFile | TensorDict] | None = None
        self._places = files.weight_map or dict.fromkeys(self._file(files.paths[0]).keys(), files.paths[0])

    def keys(self) -> list[str]:
        """Names of all tensors."""
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._file_of(name).shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor, without reading it."""
        return self._file_of(name).dtype(name)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor, on the CPU, memory-mapped where the format allows; writing to it never reaches the file."""
        return self._file_of(name).tensor(name)

    def keys_by_file(self) -> Iterator[tuple[Path, list[str]]]:
        """Files with the tensors in them: the order in which reading all tensors opens each file once."""
        for path in self.files.paths:
            yield path, [name for name, place in self._places.items() if place == path]

    def _file_of(self, name: str) -> SafetensorsFile | TensorDict:
        file = self._file(self._places[name])
        if name not in file:
            raise CheckpointFormatError(f"{self._places[name]} lacks tensor {name}, which its index places there")
        return file

    def _file(self, path: Path) -> SafetensorsFile | TensorDict:
        if self._open is None or self._open[0] != path:
            self._open = (path, SafetensorsFile(path) if path.suffix == ".safetensors" else read_torch_file(path))
        return self._open[1]


def open_checkpoint(
    location: str | os.PathLike[str] | WeightFiles,
    *,
    use_safetensors: bool | None = None,
    variant: str | None = None,
    options: HubOptions | None = None,
) -> CheckpointReader:
    """Open the weights of a model for reading (arguments and errors as for `locate_weights`)."""
    if not isinstance(location, WeightFiles):
        location = locate_weights(location, use_safetensors=use_safetensors, variant=variant, options=options)
    return CheckpointReader(location)


def read_torch_file(path: str | os.PathLike[str]) -> TensorDict:
    """Read a `.bin` or `.pt` file with torch's restricted unpickler, memory-mapped if it is a plain zip.

    Returns:
        The tensors of the dictionary in the file, or of the first dictionary of tensors within it ("state_dict").

    Raises:
        UnsafeCheckpointError: the pickle asks for anything but tensors and plain containers.
        CheckpointFormatError: the file is truncated or malformed, or holds no named tensors.
    """
    path = Path(path)
    try:
        mappable = _is_plain_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on pickle protocols; what matters raises
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path) or _starts_with_pickle(path):
            raise UnsafeCheckpointError(
                f"{path} was refused: its pickle asks for more than tensors, which could run code ({_refusal(error)}). "
                "Convert it to safetensors where you trust it"
            ) from error
        raise CheckpointFormatError(f"{path} is not a torch checkpoint{_hint(path)}") from error
    except Exception as error:
        raise CheckpointFormatError(f"{path} is not a whole torch checkpoint: {error}{_hint(path)}") from error
    return TensorDict(_named_tensors(path, content))


def _open_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointFormatError(f"{path} is not a whole safetensors file: {error}{_hint(path)}") from error


def _named_tensors(path: Path, content: object) -> dict[str, torch.Tensor]:
    if isinstance(content, Mapping):
        inner = [value for value in content.values() if isinstance(value, Mapping)]
        for candidate in (content, *inner):
            tensors = {name: value for name, value in candidate.items() if isinstance(value, torch.Tensor)}
            if tensors and all(isinstance(name, str) for name in tensors):
                return tensors
    raise CheckpointFormatError(f"{path} holds no dictionary of named tensors; expected a model's state_dict")


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


def _hint(path: Path) -> str:
    with path.open("rb") as file:
        is_pointer = file.read(24).startswith(b"version https://git-lfs")
    return "; it is a git-lfs pointer: run `git lfs pull`" if is_pointer else "; fetch or save it again"
