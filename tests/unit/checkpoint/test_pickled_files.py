"""Torch files read without torch: the same tensors as torch reads, and no code of theirs ever runs."""

from __future__ import annotations

import io
import pickle
import resource
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptrio.checkpoint.pickled_files import TorchFile
from gptrio.errors import CheckpointFormatError, UnsafeCheckpointError

WHOLE = torch.arange(24.0).reshape(4, 6)
STATE = OrderedDict(
    whole=WHOLE,
    part=WHOLE[1:3, 2:],
    transposed=WHOLE.T,
    half=torch.ones(3, dtype=torch.float16),
    bfloat=torch.full((2, 2), 1.5, dtype=torch.bfloat16),
    integers=torch.tensor([1, -2, 3]),
    flags=torch.tensor([[True, False]]),
    parameter=torch.nn.Parameter(torch.ones(2)),
    empty=torch.empty(0, 3),
    number=torch.tensor(2.5),
)


def written(content: Any, is_zip: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def saved(folder: Path, content: bytes) -> Path:
    path = folder / "pytorch_model.bin"
    path.write_bytes(content)
    return path


def values(file: TorchFile, name: str) -> bytes:
    return bytes(file.buffer(name))


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("content", [STATE, {"epoch": 3, "state_dict": STATE}], ids=["plain", "within"])
def test_the_tensors_of_torch(tmp_path: Path, content: Any, is_zip: bool) -> None:
    file = TorchFile(saved(tmp_path, written(content, is_zip)))
    assert file.keys() == sorted(STATE)
    for name, tensor in STATE.items():
        assert file.info(name).shape == tuple(tensor.shape)
        assert values(file, name) == tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes(), name
    assert file.info("bfloat").dtype == "BF16"


def test_torch_is_not_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path, written(STATE))
    code = (
        f"import sys, pathlib\nsys.modules['torch'] = None\nfrom gptrio.checkpoint.pickled_files import TorchFile\n"
        f"assert TorchFile(pathlib.Path({str(path)!r})).info('whole').shape == (4, 6)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Runs:
    """Would run code where it is unpickled by the usual rules."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_is_refused(tmp_path: Path, is_zip: bool) -> None:
    with pytest.raises(UnsafeCheckpointError, match=r"its pickle needs more than tensors.*__builtin__\.exec"):
        TorchFile(saved(tmp_path, written({"a": Runs(), **STATE}, is_zip)))


def archive(content: bytes, compression: int = zipfile.ZIP_STORED, storage: bytes = bytes(96)) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/data/0", storage)
    return buffer.getvalue()


def tensor(
    offset: str = "K\x00", shape: str = "(K\x02t", strides: str = "(K\x01t", length: str = "K\x18", kind: str = "Float"
) -> bytes:
    """A pickle of a dictionary with one tensor, whose parts are opcodes."""
    storage = f"(X\x07\x00\x00\x00storagectorch\n{kind}Storage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu{length}tQ"
    arguments = f"({storage}{offset}{shape}{strides}\x89ccollections\nOrderedDict\n)Rt"
    return f"\x80\x02}}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n{arguments}Rs.".encode("latin-1")


def test_the_pickle_of_these_tests_is_a_tensor(tmp_path: Path) -> None:
    file = TorchFile(saved(tmp_path, archive(tensor(), storage=np.arange(24, dtype="f4").tobytes())))
    np.testing.assert_array_equal(np.frombuffer(file.buffer("a"), "f4"), [0, 1])


MEMO = b"\x80\x02K\x00r\xff\xff\xff\x7f."  # a place in the memo that would fill the memory
REFUSED: dict[str, bytes] = {
    "truncated": written(STATE)[:-40],
    "truncated, old": written(STATE, is_zip=False)[:-3],
    "empty": b"",
    "text": b"hello",
    "no tensors": written({"a": 1}),
    "a list": written([torch.ones(2)]),
    "compressed": archive(tensor(), zipfile.ZIP_DEFLATED),
    "beyond the storage": archive(tensor(shape="(K\x19t")),
    "an offset beyond the storage": archive(tensor(offset="K\x17")),
    "a negative offset": archive(tensor(offset="J\xff\xff\xff\xff")),
    "a negative stride": archive(tensor(strides="(J\xff\xff\xff\xfft")),
    "more elements than the storage": archive(tensor(shape="(J\xff\xff\xff\x7ft", strides="(K\x00t")),
    "a storage longer than the file": archive(tensor(length="J\xff\xff\xff\x7f")),
    "no storage": archive(tensor(), storage=b""),
    "a shape that is no tuple": archive(tensor(shape="K\x02")),
    "a shape of texts": archive(tensor(shape="(X\x01\x00\x00\x002t")),
    "an unknown opcode": archive(b"\x80\x02\xff."),
    "an empty stack": archive(b"\x80\x02R."),
    "a huge memo": archive(MEMO),
    "a text of 4 gigabytes": archive(b"\x80\x02X\xff\xff\xff\xffabc."),
    "bytes of 8 exabytes": archive(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc."),
    "another archive": written(STATE).replace(b"data.pkl", b"else.pkl"),
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_damaged_and_hostile_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = saved(tmp_path, content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointFormatError, match=r"is not a whole torch file: .*fetch or save it again"):
        TorchFile(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


OLD = written({name: STATE[name] for name in ("whole", "half")}, is_zip=False)


@given(st.integers(0, len(OLD) - 1), st.integers(0, 255))
def test_a_changed_byte_gives_tensors_or_a_clear_error(tmp_path_factory: Any, place: int, byte: int) -> None:
    content = bytearray(OLD)
    content[place] = byte
    path = saved(tmp_path_factory.getbasetemp(), bytes(content))
    try:
        file = TorchFile(path)
    except (CheckpointFormatError, UnsafeCheckpointError):
        return
    for name in file.keys():  # noqa: SIM118  # not a mapping
        assert len(file.buffer(name)) == file.info(name).end - file.info(name).start


def test_pickles_without_an_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointFormatError, match="does not begin as torch files do"):
        TorchFile(saved(tmp_path, pickle.dumps({"a": 1})))
