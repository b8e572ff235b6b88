"""The tensors of safetensors files as typed ranges of bytes in the memory-mapped file. Loads no torch.

A safetensors file is the length of its header (8 bytes, little-endian), the header (a JSON object: tensor name -> dtype
code, shape and range of bytes), and the bytes of all tensors without gaps.
"""

from __future__ import annotations

import json
import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from gptrio.checkpoint.flax_names import is_transposed, stored_names
from gptrio.checkpoint.locate import WeightFiles
from gptrio.errors import CheckpointFormatError, UnsafeCheckpointError

# dtype code -> bits of an element; codes that numpy lacks (BF16, the floats of 8 bits and fewer) included
DTYPE_BITS = {
    code: bits
    for bits, codes in (
        (4, "F4"),
        (6, "F6_E2M3 F6_E3M2"),
        (8, "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0"),
        (16, "U16 I16 F16 BF16"),
        (32, "U32 I32 F32"),
        (64, "U64 I64 F64 C64"),
    )
    for code in codes.split()
}
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # bytes


class TensorInfo(NamedTuple):
    """The entry of a tensor in a header: its dtype code, its shape, and its bytes `start:end` in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class MappedFile(ABC):
    """Named tensors in a memory-mapped file; writing to their buffers changes private copies of pages, never the file.

    Attributes:
        kind: what the file is, for messages.
    """

    kind: ClassVar[str]

    def __init__(self, path: Path) -> None:
        """Map the file and find its tensors.

        Raises:
            CheckpointFormatError: the file is truncated or malformed.
            UnsafeCheckpointError: it holds code.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._infos = self._read(self._map)
        except UnsafeCheckpointError:
            raise
        except (ValueError, OSError, RecursionError) as error:  # JSON and UTF-8 raise ValueError
            raise CheckpointFormatError(f"{path} is not a whole {self.kind} file: {error}{way_out(path)}") from error

    @abstractmethod
    def _read(self, data: mmap.mmap) -> dict[str, TensorInfo]:
        """The tensors by name; raises ValueError where the file is wrong."""

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def keys(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Dtype code, shape and position of a tensor."""
        return self._infos[name]

    def buffer(self, name: str) -> memoryview:
        """The bytes of a tensor, row by row, little-endian."""
        return memoryview(self._map)[self._infos[name].start : self._infos[name].end]

    def release(self) -> None:
        """Let go of the memory that reading took; what is read again is read from the file again.

        Changes that were made to buffers are lost.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class SafetensorsFile(MappedFile):
    """A safetensors file, whose header is checked when it is opened."""

    kind = "safetensors"

    def _read(self, data: mmap.mmap) -> dict[str, TensorInfo]:
        return read_header(data, len(data))


class TensorFile(Protocol):
    """What `CheckpointReader` needs of each file."""

    def __contains__(self, name: str, /) -> bool:
        """Return whether there is such a tensor."""

    def keys(self) -> list[str]:
        """Names of the tensors."""


File = TypeVar("File", bound=TensorFile)


class CheckpointReader(Generic[File]):
    """All tensors of a checkpoint, in one file or in shards; one file is open at a time.

    Args:
        files: what `locate_weights` found.
        open_file: opens one of them, such as `SafetensorsFile`.

    Names are those of PyTorch; those in a checkpoint of a Flax model are translated.
    """

    def __init__(self, files: WeightFiles, open_file: Callable[[Path], File]) -> None:
        self.files = files
        self._open_file = open_file
        self._open: tuple[Path, File] | None = None
        self._paths = files.weight_map or dict.fromkeys(self._file(files.paths[0]).keys(), files.paths[0])
        self._stored = stored_names(self._paths)

    def keys(self) -> list[str]:
        """Names of all tensors."""
        return list(self._stored)

    def keys_by_file(self) -> Iterator[tuple[Path, list[str]]]:
        """Files with the tensors in them: the order in which reading all tensors opens each file once."""
        for path in self.files.paths:
            yield path, [name for name, stored in self._stored.items() if self._paths[stored] == path]

    def find(self, name: str) -> tuple[File, str, bool]:
        """Where a tensor is.

        Returns:
            The open file that holds it, its name there, and whether rows and columns are exchanged there.

        Raises:
            CheckpointFormatError: the index names a file that does not have it.
        """
        stored = self._stored[name]
        path = self._paths[stored]
        file = self._file(path)
        if stored not in file:
            raise CheckpointFormatError(f"{path} lacks tensor {stored}, which its index places there")
        return file, stored, is_transposed(stored)

    def _file(self, path: Path) -> File:
        if self._open is None or self._open[0] != path:
            self._open = (path, self._open_file(path))
        return self._open[1]


def way_out(path: Path) -> str:
    """What to do about a weight file that cannot be read, for the end of a message."""
    with path.open("rb") as file:
        is_pointer = file.read(24).startswith(b"version https://git-lfs")
    return "; it is a git-lfs pointer: run `git lfs pull`" if is_pointer else "; fetch or save it again"


def header_end(start: bytes, size: int) -> int:
    """The place of the first tensor's bytes in a file of `size` bytes that begins with `start`; raises ValueError."""
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if length > _LONGEST_HEADER or _LENGTH_BYTES + length > size:
        raise ValueError(f"a header of {length} bytes is longer than the file of {size}, or than any real one")
    return _LENGTH_BYTES + length


def read_header(data: bytes | mmap.mmap, size: int) -> dict[str, TensorInfo]:
    """The tensors of a file by name.

    Args:
        data: the file, or as much of it as has the header.
        size: of the whole file in bytes.

    Raises:
        ValueError: the header is malformed, or does not fit the size.
    """
    first = header_end(data[:_LENGTH_BYTES], size)
    header = json.loads(data[_LENGTH_BYTES:first].decode("utf-8"), object_pairs_hook=_without_duplicates)
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    header.pop("__metadata__", None)
    infos = {name: _tensor_info(name, entry, first) for name, entry in header.items()}
    end = first
    for name, info in sorted(infos.items(), key=lambda item: item[1][2:]):
        if info.start != end:
            raise ValueError(f"tensor {name} starts at byte {info.start}; expected {end}, the end of the one before")
        end = info.end
    if end != size:
        raise ValueError(f"the tensors end at byte {end}, the file at byte {size}")
    return infos


def _tensor_info(name: str, entry: Any, first: int) -> TensorInfo:
    """Check one entry of a header; `first` is the position of the first tensor's bytes in the file."""
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
            raise ValueError
        bits = DTYPE_BITS[dtype] * math.prod(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"tensor {name} is described by {entry!r:.200}; expected a known dtype, a shape and data_offsets"
        ) from error
    if bits != 8 * (end - start):
        raise ValueError(f"tensor {name} of type {dtype} and shape {list(shape)} does not fill bytes {start} to {end}")
    return TensorInfo(dtype, shape, first + start, first + end)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("the header names a tensor twice")
    return content
