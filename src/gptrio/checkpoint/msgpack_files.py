"""The arrays of Flax's msgpack files as typed ranges of bytes in the memory-mapped file. Loads neither torch nor jax.

Such a file is one msgpack value (https://github.com/msgpack/msgpack/blob/master/spec.md): a tree of maps whose leaves
are extension values of type 1, each with an array's shape, dtype and bytes. An array of more than a gigabyte is a map
of chunks. Nothing is allocated for what a file claims to hold: every length is compared with what is left of the file.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Any, NamedTuple

from gptrio.checkpoint.reader import DTYPE_BITS, MappedFile, TensorInfo

_ARRAY = 1  # type of the extension that Flax uses for arrays
_CHUNKED = "__msgpack_chunked_array__"
_MOST_NESTED = 50
_CODES = {"bfloat16": "BF16", "bool": "BOOL"}
_CODES |= {f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("float", "int", "uint") for bits in (8, 16, 32, 64)}


class MsgpackFile(MappedFile):
    """A msgpack file of a Flax model; names are paths with "/" between their parts."""

    kind = "msgpack"

    def __init__(self, path: Path) -> None:
        """Map the file and find its arrays; raises CheckpointFormatError for a truncated or malformed file."""
        self._chunks: dict[str, list[TensorInfo]] = {}
        super().__init__(path)

    def _read(self, data: mmap.mmap) -> dict[str, TensorInfo]:
        parser = _Parser(data)
        tree = parser.value()
        if not isinstance(tree, dict):
            raise ValueError("it holds no map of parameters")
        if parser.position != len(data):
            raise ValueError(f"{len(data) - parser.position} bytes follow the parameters")
        infos: dict[str, TensorInfo] = {}
        self._collect(tree, "", infos)
        return infos

    def _collect(self, tree: dict[str, Any], prefix: str, infos: dict[str, TensorInfo]) -> None:
        for name, value in tree.items():
            path = f"{prefix}{name}"
            if isinstance(value, TensorInfo):
                infos[path] = value
            elif not isinstance(value, dict):
                raise ValueError(f"{path} is {value!r:.80}, not an array")
            elif _CHUNKED in value:
                self._chunks[path] = _in_order(value.get("chunks"), path)
                infos[path] = _whole(self._chunks[path], _in_order(value.get("shape"), path), path)
            else:
                self._collect(value, f"{path}/", infos)

    def buffer(self, name: str) -> memoryview:
        """The bytes of an array, row by row, little-endian; those of a chunked array are copied."""
        if name not in self._chunks:
            return super().buffer(name)
        return memoryview(bytearray().join(memoryview(self._map)[part.start : part.end] for part in self._chunks[name]))


def _in_order(entries: Any, path: str) -> list[Any]:
    """The values of a map whose keys are "0", "1" and so on."""
    if not isinstance(entries, dict) or list(entries) != [str(i) for i in range(len(entries))]:
        raise ValueError(f"the chunks of {path} are not numbered")
    return list(entries.values())


def _whole(chunks: list[Any], shape: list[Any], path: str) -> TensorInfo:
    """The array that chunks make up; its bytes do not follow each other."""
    if not chunks or not all(isinstance(chunk, TensorInfo) and chunk.dtype == chunks[0].dtype for chunk in chunks):
        raise ValueError(f"the chunks of {path} are not arrays of one type")
    size = sum(chunk.end - chunk.start for chunk in chunks)
    _check_size(chunks[0].dtype, shape, size, path)
    return TensorInfo(chunks[0].dtype, tuple(shape), chunks[0].start, chunks[-1].end)


def _check_size(code: str, shape: Any, size: int, path: str) -> None:
    if (
        not all(type(length) is int and length >= 0 for length in shape)
        or DTYPE_BITS[code] * math.prod(shape) != 8 * size
    ):
        raise ValueError(f"{path} of type {code} and shape {shape} does not fill {size} bytes")


class _Bytes(NamedTuple):
    """A range of the file."""

    start: int
    end: int


class _Parser:
    """Reads the msgpack values of a file one after the other; raises ValueError."""

    def __init__(self, data: mmap.mmap, position: int = 0, end: int | None = None) -> None:
        self.data, self.position, self.end = data, position, len(data) if end is None else end

    def value(self, depth: int = 0) -> Any:
        """The next value: maps, lists, numbers and texts as in Python, arrays as `TensorInfo`, bytes as `_Bytes`."""
        if depth > _MOST_NESTED:
            raise ValueError(f"values are nested more than {_MOST_NESTED} deep")
        head = self._number(1)
        if head <= 0x7F or head >= 0xE0:  # small integers
            return head if head <= 0x7F else head - 256
        if head <= 0x8F:
            return self._map(head & 0x0F, depth)
        if head <= 0x9F:
            return self._list(head & 0x0F, depth)
        if head <= 0xBF:
            return self._text(head & 0x1F)
        return self._sized(head, depth)

    def _sized(self, head: int, depth: int) -> Any:
        """A value whose head is followed by a number of bytes or of elements."""
        if head in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[head]
        if head in (0xCA, 0xCB):  # a number with a fraction, which has no place here
            return self._skip(4 if head == 0xCA else 8)
        if 0xCC <= head <= 0xD3:
            return self._number(1 << (head & 3), signed=head >= 0xD0)
        if 0xD4 <= head <= 0xD8:
            return self._extension(1 << (head - 0xD4))
        for first, read in ((0xC4, self._skip), (0xC7, self._extension), (0xD9, self._text)):
            if first <= head <= first + 2:
                return read(self._number(1 << (head - first)))
        many = self._list if head in (0xDC, 0xDD) else self._map
        if head not in (0xDC, 0xDD, 0xDE, 0xDF):
            raise ValueError(f"byte {self.position - 1} begins no value")
        return many(self._number(2 if head in (0xDC, 0xDE) else 4), depth)

    def _number(self, length: int, signed: bool = False) -> int:
        place = self._skip(length)
        return int.from_bytes(self.data[place.start : place.end], "big", signed=signed)

    def _skip(self, length: int) -> _Bytes:
        start, self.position = self.position, self.position + length
        if self.position > self.end:
            raise ValueError(f"{length} bytes from byte {start} on are beyond its end")
        return _Bytes(start, self.position)

    def _text(self, length: int) -> str:
        place = self._skip(length)
        return self.data[place.start : place.end].decode("utf-8")

    def _expect(self, count: int) -> None:
        if count > self.end - self.position:  # each value has a byte at least
            raise ValueError(f"{count} values from byte {self.position} on are beyond its end")

    def _list(self, count: int, depth: int) -> list[Any]:
        self._expect(count)
        return [self.value(depth + 1) for _ in range(count)]

    def _map(self, count: int, depth: int) -> dict[str, Any]:
        self._expect(count)
        content: dict[str, Any] = {}
        for _ in range(count):
            name = self.value(depth + 1)
            if not isinstance(name, str) or name in content:
                raise ValueError(f"the name {name!r:.80} is not a text, or comes twice")
            content[name] = self.value(depth + 1)
        return content

    def _extension(self, length: int) -> TensorInfo:
        kind = self._number(1, signed=True)
        place = self._skip(length)
        inner = _Parser(self.data, place.start, place.end).value()
        if kind != _ARRAY or not isinstance(inner, list) or len(inner) != 3:
            raise ValueError(f"byte {place.start} begins an extension of type {kind}; expected arrays (type {_ARRAY})")
        shape, dtype, content = inner
        if not isinstance(shape, list) or not isinstance(content, _Bytes) or dtype not in _CODES:
            raise ValueError(
                f"byte {place.start} begins an array of {dtype!r:.80}; expected one of {', '.join(_CODES)}"
            )
        _check_size(_CODES[dtype], shape, content.end - content.start, f"an array at byte {place.start}")
        return TensorInfo(_CODES[dtype], tuple(shape), content.start, content.end)
