"""Flax's msgpack files: what they hold is found without reading it, and a damaged or hostile one is refused."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from flax import serialization
from hypothesis import given
from hypothesis import strategies as st

from gptrio.checkpoint.msgpack_files import MsgpackFile
from gptrio.errors import CheckpointFormatError

TREE = {
    "wte": {"embedding": np.arange(12, dtype=np.float32).reshape(4, 3)},
    "h": {"0": {"kernel": np.ones((2, 2), np.float16), "bias": np.zeros(0, np.float32)}},
    "steps": np.array(7, np.int32),
}


def saved(folder: Path, content: bytes) -> Path:
    path = folder / "flax_model.msgpack"
    path.write_bytes(content)
    return path


def arrays(file: MsgpackFile) -> dict[str, np.ndarray[Any, Any]]:
    numpy_names = {"F32": "f4", "F16": "f2", "I32": "i4"}
    return {
        name: np.frombuffer(file.buffer(name), numpy_names[file.info(name).dtype]).reshape(file.info(name).shape)
        for name in file.keys()  # noqa: SIM118  # not a mapping
    }


def test_arrays_by_their_paths(tmp_path: Path) -> None:
    found = arrays(MsgpackFile(saved(tmp_path, serialization.to_bytes(TREE))))
    assert list(found) == ["h/0/bias", "h/0/kernel", "steps", "wte/embedding"]
    np.testing.assert_array_equal(found["wte/embedding"], TREE["wte"]["embedding"])
    np.testing.assert_array_equal(found["h/0/kernel"], TREE["h"]["0"]["kernel"])
    assert found["steps"] == 7


def test_bfloat16(tmp_path: Path) -> None:
    import jax.numpy as jnp

    file = MsgpackFile(saved(tmp_path, serialization.to_bytes({"a": jnp.ones((2, 3), jnp.bfloat16)})))
    assert file.info("a")[:2] == ("BF16", (2, 3))
    assert bytes(file.buffer("a")) == b"\x80\x3f" * 6


def test_an_array_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 16)
    found = arrays(MsgpackFile(saved(tmp_path, serialization.to_bytes(TREE))))
    np.testing.assert_array_equal(found["wte/embedding"], TREE["wte"]["embedding"])


def extension(shape: Any, dtype: str, content: Any, kind: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(kind, msgpack.packb((shape, dtype, content)))


WHOLE = serialization.to_bytes(TREE)
CHUNKS = {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"0": extension([2], "float32", bytes(8))}}
REFUSED: dict[str, bytes] = {
    "truncated": WHOLE[:-3],
    "empty": b"",
    "more after the end": WHOLE + b"\x00",
    "not a map": msgpack.packb([1, 2]),
    "a number": msgpack.packb({"a": 1}),
    "a fraction": msgpack.packb({"a": 1.5}),
    "a text": msgpack.packb({"a": "x"}),
    "a name twice": b"\x82\xa1a\x80\xa1a\x80",
    "a name of bytes": msgpack.packb({b"a": {}}),
    "a wrong size": msgpack.packb({"a": extension([3], "float32", bytes(8))}),
    "a negative length": msgpack.packb({"a": extension([-2, -1], "float32", bytes(8))}),
    "a length that is no number": msgpack.packb({"a": extension(["2"], "float32", bytes(8))}),
    "an unknown type": msgpack.packb({"a": extension([1], "object", bytes(8))}),
    "another extension": msgpack.packb({"a": extension([2], "float32", bytes(8), kind=2)}),
    "chunks of another size": msgpack.packb({"a": {**CHUNKS, "shape": {"0": 3}}}),
    "chunks without numbers": msgpack.packb({"a": {**CHUNKS, "chunks": {"x": CHUNKS["chunks"]["0"]}}}),
    "no chunks": msgpack.packb({"a": {**CHUNKS, "chunks": {}}}),
    "an unused head": b"\xc1",
    "deeply nested": b"\x81\xa1a" * 2000 + b"\x80",
    "a map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "a list of 4 billion": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "a text of 4 gigabytes": b"\xdb\xff\xff\xff\xff",
    "an array of 4 gigabytes": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_damaged_and_hostile_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = saved(tmp_path, content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointFormatError, match=r"is not a whole msgpack file: .*(fetch or save it again|git lfs)"):
        MsgpackFile(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_a_changed_byte_gives_arrays_or_a_clear_error(tmp_path_factory: Any, place: int, byte: int) -> None:
    content = bytearray(WHOLE)
    content[place] = byte
    path = saved(tmp_path_factory.getbasetemp(), bytes(content))
    try:
        file = MsgpackFile(path)
    except CheckpointFormatError:
        return
    for name in file.keys():  # noqa: SIM118  # not a mapping
        assert len(file.buffer(name)) == file.info(name).end - file.info(name).start
