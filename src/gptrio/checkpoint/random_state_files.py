"""The states of random generators in `rng_state.pth`, as Transformers' Trainer pickles them. Loads no torch.

Beside a tensor, such a file holds tuples of numbers and an array of numpy. Nothing of numpy is called while it is read:
what stands for its functions here takes an array of unsigned numbers of 32 bits, and refuses all else.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gptrio.checkpoint.pickled_files import TensorUnpickler, TensorView, TorchFile
from gptrio.checkpoint.reader import TensorInfo


def read_random_states(path: Path) -> dict[str, Any]:
    """What a file says of each generator: "python" and "numpy" as their modules take it, bytes (uint8) for devices.

    Raises:
        UnsafeCheckpointError: the pickle needs anything else.
        CheckpointFormatError: the file is truncated or malformed.
    """
    return _RandomStateFile(path).states


class _Dtype:
    """Stands for numpy's type of 32 bits without sign."""

    def __init__(self, code: object, *_: object) -> None:
        if code != "u4":
            raise ValueError(f"an array of type {code!r:.80} is no state of a random generator")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] != "<":
            raise ValueError(f"an array has byte order {state[1]!r:.80}; expected '<'")


class _Array:
    """Stands for numpy's array."""

    values: np.ndarray[Any, np.dtype[np.uint32]]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, _, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes) or shape != (len(content) // 4,):
            raise ValueError("an array has no type, no bytes, or another number of them than its shape says")
        self.values = np.frombuffer(content, "<u4")


def _new_array(kind: object, *_: object) -> _Array:
    if kind is not _Array:
        raise ValueError("an array is of no type that numpy has")
    return _Array()


def _encode(text: object, encoding: object) -> bytes:
    """Bytes, which old pickles hold as text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes are not in the form of a pickle")
    return text.encode("latin1")


class _Unpickler(TensorUnpickler):
    allowed: ClassVar[Mapping[tuple[str, str], Callable[..., Any]]] = {
        **TensorUnpickler.allowed,
        ("_codecs", "encode"): _encode,
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _new_array,
        ("numpy.core.multiarray", "_reconstruct"): _new_array,  # before numpy 2
    }


class _RandomStateFile(TorchFile):
    """A file of random states."""

    kind: ClassVar[str] = "random state"
    unpickler: ClassVar[type[TensorUnpickler]] = _Unpickler
    states: dict[str, Any]

    def _read(self, data: mmap.mmap) -> dict[str, TensorInfo]:
        try:
            content, starts = self._content(data)
            if not isinstance(content, dict):
                raise ValueError("it holds no dictionary")
            self.states = {str(name): self._plain(value, data, starts) for name, value in content.items()}
        except (ValueError, OSError):
            raise
        except Exception as error:  # whatever a malformed pickle leads to
            raise ValueError(f"its pickle cannot be read: {type(error).__name__}: {error}") from error
        return {}

    def _plain(self, value: Any, data: mmap.mmap, starts: Mapping[str, tuple[int, int]]) -> Any:
        if isinstance(value, TensorView):
            info = self._info("a state", value, starts)
            if info.dtype != "U8" or not value.is_contiguous:
                raise ValueError(f"a state of a device is of type {info.dtype}; expected bytes")
            return np.frombuffer(data[info.start : info.end], np.uint8)
        if isinstance(value, _Array):
            return value.values
        if isinstance(value, (list, tuple)):
            return type(value)(self._plain(item, data, starts) for item in value)
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise ValueError(f"it holds a {type(value).__name__}, which is no part of a random state")
