"""Safetensors files and shards: every layout, damaged headers, and no torch."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gptrio.checkpoint.load import open_checkpoint
from gptrio.checkpoint.reader import SafetensorsFile
from gptrio.errors import CheckpointFormatError, UnsafeCheckpointError
from tests.unit.checkpoint.layouts import TENSORS, assert_holds, write_layout, write_shards


@pytest.mark.parametrize("layout", ["safetensors", "bin", "legacy bin", "safetensors shards", "bin shards"])
def test_every_layout(tmp_path: Path, layout: str) -> None:
    reader = open_checkpoint(write_layout(tmp_path, layout))
    assert_holds(reader, TENSORS)
    by_file = list(reader.keys_by_file())
    assert len(by_file) == (2 if "shards" in layout else 1)
    assert sorted(name for _, names in by_file for name in names) == sorted(TENSORS)


@pytest.mark.parametrize("layout", ["safetensors", "bin", "legacy bin"])
def test_writing_to_a_tensor_never_reaches_the_file(tmp_path: Path, layout: str) -> None:
    write_layout(tmp_path, layout)
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    tensor = open_checkpoint(tmp_path).tensor("a.weight")
    tensor.mul_(7).add_(1)
    assert file.read_bytes() == before
    assert torch.equal(open_checkpoint(tmp_path).tensor("a.weight"), TENSORS["a.weight"])


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_tensors_outlive_the_removal_of_their_file(tmp_path: Path, layout: str) -> None:
    reader = open_checkpoint(write_layout(tmp_path / "model", layout))
    tensor = reader.tensor("a.weight")
    shutil.rmtree(tmp_path / "model")
    assert torch.equal(tensor, TENSORS["a.weight"])


def test_index_that_places_a_tensor_wrongly(tmp_path: Path) -> None:
    index = write_shards(tmp_path, "safetensors", "model")
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointFormatError, match=r"model-00001-of-00002\.safetensors lacks tensor ghost"):
        open_checkpoint(tmp_path).tensor("ghost")


def damage(data: bytes, kind: str) -> bytes:
    """Break a safetensors file in one way."""
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    if kind == "empty":
        return b""
    if kind == "cut in the header":
        return data[: 8 + length // 2]
    if kind == "cut in the data":
        return data[:-5]
    if kind == "huge header":
        return (2**62).to_bytes(8, "little") + data[8:]
    if kind == "not json":
        return data[:8] + b"\xff" * length + body
    changes = {
        "larger shape": (b"[2,3]", b"[9,3]"),
        "offset past the end": (b'"data_offsets":[0,', b'"data_offsets":[9,'),
        "unknown type": (b'"F32"', b'"F99"'),
    }
    old, new = changes[kind]
    assert old in header
    return data[:8] + header.replace(old, new) + body


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "cut in the header",
        "cut in the data",
        "huge header",
        "not json",
        "larger shape",
        "offset past the end",
        "unknown type",
    ],
)
def test_damaged_safetensors(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    file.write_bytes(damage(file.read_bytes(), kind))
    with pytest.raises(CheckpointFormatError, match=r"model\.safetensors is not a whole safetensors file"):
        open_checkpoint(tmp_path)


def test_lfs_pointer_says_what_to_do(tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(CheckpointFormatError, match="git lfs pull"):
            open_checkpoint(tmp_path / name)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, on odd pickles
@pytest.mark.parametrize("layout", ["safetensors", "bin", "legacy bin"])
def test_flipped_bytes_give_tensors_or_a_clear_error(tmp_path: Path, layout: str) -> None:
    write_layout(tmp_path, layout)
    (file,) = tmp_path.iterdir()
    data, chance = file.read_bytes(), random.Random(0)
    for _ in range(100):
        broken = bytearray(data)
        for _ in range(chance.choice([1, 2, 5])):
            broken[chance.randrange(min(len(data), chance.choice([400, 10**6])))] = chance.randrange(256)
        file.unlink()
        file.write_bytes(broken)
        try:
            reader = open_checkpoint(file)
            for name in reader.keys():  # noqa: SIM118 - not a mapping
                assert reader.tensor(name).dtype == reader.dtype(name)
        except (CheckpointFormatError, UnsafeCheckpointError):
            continue


ENTRY = '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'


def with_header(file: Path, header: str) -> Path:
    """Write 16 bytes of data under a header."""
    file.write_bytes(len(header.encode()).to_bytes(8, "little") + header.encode() + bytes(range(16)))
    return file


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "{}",
        '{"a":1}',
        '{"a":[4]}',
        ENTRY.replace("[4]", "[4.0]"),
        ENTRY.replace("[4]", "[-4]"),
        ENTRY.replace("[4]", "[true,4]"),
        ENTRY.replace("[4]", '["a",99999999999999]'),
        ENTRY.replace("[4]", "[3]"),
        ENTRY.replace("[0,16]", "[0,16,3]"),
        ENTRY.replace("[0,16]", "[4,20]"),
        ENTRY.replace("[4]", "[3]").replace("[0,16]", "[0,12]"),
        ENTRY.replace('"F32"', '["F32"]'),
        '{"a":' * 100_000 + "1" + "}" * 100_000,
    ],
)
def test_impossible_headers_are_refused_as_the_library_refuses_them(tmp_path: Path, header: str) -> None:
    file = with_header(tmp_path / "model.safetensors", header)
    with pytest.raises(CheckpointFormatError, match=r"model\.safetensors is not a whole safetensors file"):
        SafetensorsFile(file)
    with pytest.raises(SafetensorError):
        safe_open(file, "np")


def test_a_tensor_named_twice_is_refused(tmp_path: Path) -> None:
    file = with_header(tmp_path / "model.safetensors", ENTRY[:-1] + "," + ENTRY[1:])
    with pytest.raises(CheckpointFormatError, match="names a tensor twice"):
        SafetensorsFile(file)


@pytest.mark.parametrize(
    ("code", "shape"),
    [("F4", [32]), ("F8_E4M3", [2, 8]), ("F8_E8M0", [16]), ("BF16", [8]), ("C64", [2]), ("U16", [8]), ("F32", [2, 2])],
)
def test_every_dtype_is_read_as_its_code_and_bytes(tmp_path: Path, code: str, shape: list[int]) -> None:
    header = json.dumps({"a": {"dtype": code, "shape": shape, "data_offsets": [0, 16]}, "__metadata__": {"x": "y"}})
    file = SafetensorsFile(with_header(tmp_path / "model.safetensors", header))
    assert file.keys() == ["a"]
    assert file.info("a")[:2] == (code, tuple(shape))
    assert bytes(file.buffer("a")) == bytes(range(16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool, torch.float64])
def test_torch_tensors_have_the_values_that_were_written(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.tensor([[0.0, 1.0], [-2.0, 0.5]]).to(dtype), "none": torch.empty(0, 3, dtype=dtype)}
    save_file(tensors, tmp_path / "model.safetensors")
    reader = open_checkpoint(tmp_path)
    assert reader.dtype("a") is dtype
    assert torch.equal(reader.tensor("a").view(torch.uint8), tensors["a"].view(torch.uint8))
    assert reader.tensor("none").shape == (0, 3)


def test_shards_are_read_where_torch_is_not_installed(tmp_path: Path) -> None:
    write_layout(tmp_path, "safetensors shards")
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import numpy\n"
        "from gptrio.checkpoint.locate import locate_weights\n"
        "from gptrio.checkpoint.reader import CheckpointReader, SafetensorsFile\n"
        f"reader = CheckpointReader(locate_weights({str(tmp_path)!r}), SafetensorsFile)\n"
        "file, name, is_transposed = reader.find('a.weight')\n"
        "assert not is_transposed\n"
        "info = file.info(name)\n"
        "values = numpy.frombuffer(file.buffer(name), '<f4').reshape(info.shape)\n"
        "assert values.tolist() == [[0, 1, 2], [3, 4, 5]], values\n"
        "assert reader.find('b.weight')[0].info('b.weight')[:2] == ('BF16', (4,))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
