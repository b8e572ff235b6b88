"""The tensors of `.bin` and `.pt` files, as torch writes them, as ranges of bytes in the mapped file. Loads no torch.

Such a file is a zip archive of a pickle and the storages of tensors; before torch 1.6 it was a sequence of pickles, and
the storages after them. The pickle is read by Python's own unpickler, which calls nothing but the functions here.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from gptrio.checkpoint.reader import DTYPE_BITS, MappedFile, TensorInfo
from gptrio.errors import UnsafeCheckpointError

Tensor = TypeVar("Tensor")

_MAGIC = 0x1950A86A20F9469CFC6C  # first value of a file before torch 1.6
_STORAGES = {
    "Double": "F64",
    "Float": "F32",
    "Half": "F16",
    "BFloat16": "BF16",
    "Long": "I64",
    "Int": "I32",
    "Short": "I16",
    "Char": "I8",
    "Byte": "U8",
    "Bool": "BOOL",
}


def named_tensors(content: object, kind: type[Tensor]) -> dict[str, Tensor] | None:
    """The tensors of a dictionary, or of the first dictionary of tensors within it ("state_dict"); None without any.

    Args:
        content: what a file holds.
        kind: class of tensors.
    """
    if isinstance(content, Mapping):
        inner = [value for value in content.values() if isinstance(value, Mapping)]
        for candidate in (content, *inner):
            tensors = {name: value for name, value in candidate.items() if isinstance(value, kind)}
            if tensors and all(isinstance(name, str) for name in tensors):
                return tensors
    return None


def refused(path: Path, what: str) -> UnsafeCheckpointError:
    """The error for a pickle that needs `what`, which is no part of a tensor."""
    return UnsafeCheckpointError(
        f"{path} was refused: its pickle needs more than tensors, which could run code ({what}). Convert it to "
        "safetensors where you trust it"
    )


class _Storage(NamedTuple):
    """Where elements are: its dtype code, its name in the file, and its length."""

    dtype: str
    key: str
    length: int


class TensorView(NamedTuple):
    """A tensor: some elements of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def check(self) -> None:
        """Raise ValueError for a view that leaves its storage, or has more elements than it."""
        numbers = (self.storage.length, self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"a tensor of shape {self.shape!r:.80} and strides {self.strides!r:.80} cannot be")
        last = self.offset + sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))
        size = math.prod(self.shape)
        if size > self.storage.length or (size and last >= self.storage.length):
            raise ValueError(f"a tensor of shape {self.shape} does not fit into {self.storage.length} elements")

    @property
    def is_contiguous(self) -> bool:
        """Whether elements follow each other row by row."""
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length != 1 and stride != expected:
                return False
            expected *= length
        return True


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *others: Any) -> TensorView:
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("a tensor has no storage, shape or strides")
    return TensorView(storage, offset, shape, strides)


def _rebuild_parameter(data: TensorView, *others: Any) -> TensorView:
    return data


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
}


class TensorUnpickler(pickle._Unpickler):
    """Python's unpickler, for tensors and plain containers only.

    Attributes:
        allowed: what stands for a function or class of a pickle, by its module and name.
    """

    allowed: ClassVar[Mapping[tuple[str, str], Callable[..., Any]]] = _ALLOWED

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="utf-8")
        self.path = path
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """One of the functions below, or the dtype code of a kind of storage; raises UnsafeCheckpointError."""
        if module == "torch" and name.removesuffix("Storage") in _STORAGES:
            return _STORAGES[name.removesuffix("Storage")]
        if (module, name) not in self.allowed:
            raise refused(self.path, f"{module}.{name}")
        return self.allowed[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that a tensor refers to."""
        what, dtype, key, _, length = pid[:5]
        if what != "storage" or dtype not in DTYPE_BITS or type(length) is not int:
            raise ValueError(f"{pid!r:.80} is not a storage")
        return self.storages.setdefault(str(key), _Storage(dtype, str(key), length))


class TorchFile(MappedFile):
    """A torch file."""

    kind: ClassVar[str] = "torch"
    unpickler: ClassVar[type[TensorUnpickler]] = TensorUnpickler

    def _read(self, data: mmap.mmap) -> dict[str, TensorInfo]:
        try:
            content, starts = self._content(data)
            views = named_tensors(content, TensorView)
        except (ValueError, OSError):
            raise
        except Exception as error:  # whatever a malformed pickle leads to
            raise ValueError(f"its pickle cannot be read: {type(error).__name__}: {error}") from error
        if views is None:
            raise ValueError("it holds no dictionary of named tensors; expected a model's state_dict")
        self._strided: dict[str, tuple[int, TensorView]] = {}
        return {name: self._info(name, view, starts) for name, view in views.items()}

    def _content(self, data: mmap.mmap) -> tuple[object, dict[str, tuple[int, int]]]:
        """What is pickled, and where each storage is: its name -> first byte, number of bytes."""
        if zipfile.is_zipfile(self.path):
            return self._zipped(data)
        return self._unzipped(data)

    def _zipped(self, data: mmap.mmap) -> tuple[object, dict[str, tuple[int, int]]]:
        with zipfile.ZipFile(self.path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
        root = next((name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")), None)
        if root is None:
            raise ValueError("the archive has no data.pkl")
        places = {}
        for name, entry in entries.items():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name} is compressed")
            head = entry.header_offset
            lengths = data[head + 26 : head + 28], data[head + 28 : head + 30]  # of its name, and of extra fields
            start = head + 30 + sum(int.from_bytes(length, "little") for length in lengths)
            if start + entry.file_size > len(data):
                raise ValueError(f"{name} is beyond its end")
            places[name.removeprefix(root)] = (start, entry.file_size)
        start, size = places["data.pkl"]
        content = self.unpickler(io.BytesIO(data[start : start + size]), self.path).load()
        return content, {name.removeprefix("data/"): place for name, place in places.items()}

    def _unzipped(self, data: mmap.mmap) -> tuple[object, dict[str, tuple[int, int]]]:
        if self.unpickler(data, self.path).load() != _MAGIC:
            raise ValueError("it does not begin as torch files do")
        for _ in ("protocol", "system"):
            self.unpickler(data, self.path).load()
        unpickler = self.unpickler(data, self.path)
        content, keys = unpickler.load(), self.unpickler(data, self.path).load()
        starts, position = {}, data.tell()
        for key in keys:
            storage = unpickler.storages[key]
            size = storage.length * DTYPE_BITS[storage.dtype] // 8
            length, position = int.from_bytes(data[position : position + 8], "little"), position + 8
            if length != storage.length or position + size > len(data):
                raise ValueError(f"storage {key!r:.80} is not whole")
            starts[key] = (position, size)
            position += size
        return content, starts

    def _info(self, name: str, view: TensorView, starts: Mapping[str, tuple[int, int]]) -> TensorInfo:
        view.check()
        size = DTYPE_BITS[view.storage.dtype] // 8
        if view.storage.key not in starts or view.storage.length * size > starts[view.storage.key][1]:
            raise ValueError(f"the storage of {name} is missing or too short")
        first = starts[view.storage.key][0]
        start = first + view.offset * size
        if not view.is_contiguous:
            self._strided[name] = (first, view)
        return TensorInfo(view.storage.dtype, view.shape, start, start + math.prod(view.shape) * size)

    def buffer(self, name: str) -> memoryview:
        """The bytes of a tensor, row by row, little-endian; those that do not follow each other are copied."""
        if name not in self._strided:
            return super().buffer(name)
        import numpy as np

        first, view = self._strided[name]
        kind = f"u{DTYPE_BITS[view.storage.dtype] // 8}"
        elements = np.frombuffer(self._map, kind, view.storage.length, first)[view.offset :]
        strides = [stride * elements.itemsize for stride in view.strides]
        array = np.lib.stride_tricks.as_strided(elements, view.shape, strides)
        return memoryview(np.ascontiguousarray(array).tobytes())
