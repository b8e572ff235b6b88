"""Reading weights: every layout, nothing executed, clear errors for files that are missing, broken or hostile."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gptrio.checkpoint.locate import locate_weights
from gptrio.checkpoint.read import CheckpointReader, open_checkpoint, read_torch_file
from gptrio.errors import CheckpointFormatError, CheckpointNotFoundError, UnsafeCheckpointError
from gptrio.hub import HubOptions

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b.weight": torch.arange(4, dtype=torch.bfloat16),
    "c": torch.tensor([1, 2, 3]),
}


def write_shards(folder: Path, extension: str, base: str) -> Path:
    """Two shards with an index; returns the index."""
    weight_map = {}
    for number, names in enumerate((["a.weight", "c"], ["b.weight"]), start=1):
        file = f"{base}-{number:05d}-of-00002.{extension}"
        part = {name: TENSORS[name] for name in names}
        save_file(part, folder / file) if extension == "safetensors" else torch.save(part, folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = folder / f"{base}.{extension}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def write_layout(folder: Path, layout: str) -> Path:
    folder.mkdir(exist_ok=True)
    if layout == "safetensors":
        save_file(TENSORS, folder / "model.safetensors")
    elif layout == "bin":
        torch.save(TENSORS, folder / "pytorch_model.bin")
    elif layout == "legacy bin":
        torch.save(TENSORS, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif layout == "safetensors shards":
        write_shards(folder, "safetensors", "model")
    elif layout == "bin shards":
        write_shards(folder, "bin", "pytorch_model")
    return folder


def assert_holds(reader: CheckpointReader, tensors: dict[str, torch.Tensor]) -> None:
    assert set(reader.keys()) == set(tensors)
    for name, expected in tensors.items():
        assert reader.shape(name) == tuple(expected.shape)
        assert reader.dtype(name) == expected.dtype
        assert torch.equal(reader.tensor(name), expected)


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


def test_preference_for_safetensors(tmp_path: Path) -> None:
    torch.save({"old": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointNotFoundError, match=r"expected model\.safetensors \(or its \.index\.json\); check"):
        open_checkpoint(tmp_path, use_safetensors=True)
    assert open_checkpoint(tmp_path).keys() == ["old"]
    save_file({"new": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).keys() == ["new"]
    assert open_checkpoint(tmp_path, use_safetensors=False).keys() == ["old"]


def test_variant_and_subfolder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    save_file(TENSORS, tmp_path / "inner" / "model.fp16.safetensors")
    assert_holds(open_checkpoint(tmp_path, variant="fp16", options=HubOptions(subfolder="inner")), TENSORS)
    with pytest.raises(CheckpointNotFoundError, match=r"model\.safetensors .* pytorch_model\.bin"):
        open_checkpoint(tmp_path, options=HubOptions(subfolder="inner"))


def test_single_file_of_any_name(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "ckpt.pt")
    assert_holds(open_checkpoint(tmp_path / "ckpt.pt"), TENSORS)
    save_file(TENSORS, tmp_path / "weights.safetensors")
    assert_holds(open_checkpoint(tmp_path / "weights.safetensors"), TENSORS)


def test_weights_in_the_hub_cache(tmp_path: Path) -> None:
    repo = tmp_path / "models--someone--tiny"
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    write_layout(snapshot, "safetensors shards")
    options = HubOptions(cache_dir=tmp_path, local_files_only=True)
    assert_holds(open_checkpoint("someone/tiny", options=options), TENSORS)
    with pytest.raises(CheckpointNotFoundError, match="no weights in hub repository 'someone/tiny'"):
        open_checkpoint("someone/tiny", options=options, variant="fp16")


@pytest.mark.parametrize(
    "outside", ["../secret.safetensors", "/etc/x.safetensors", "..", "a\\b.safetensors", "C:x.safetensors"]
)
def test_index_that_leaves_the_folder_is_refused(tmp_path: Path, outside: str) -> None:
    save_file(TENSORS, tmp_path / "secret.safetensors")
    (tmp_path / "model").mkdir()
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": outside}}))
    with pytest.raises(UnsafeCheckpointError, match="expected plain names"):
        locate_weights(tmp_path / "model")


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"weight_map": {}}', '{"weight_map": ["a"]}', '{"weight_map": {"a": "a.bin"}}']
)
def test_malformed_index(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointFormatError, match=r"model\.safetensors\.index\.json"):
        locate_weights(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, "safetensors", "model")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"shard model-00002-of-00002\.safetensors is missing"):
        open_checkpoint(tmp_path)


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


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.95])
def test_truncated_torch_file(tmp_path: Path, share: float, legacy: bool) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1000)}, file, _use_new_zipfile_serialization=not legacy)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointFormatError, match=r"pytorch_model\.bin is not a whole torch checkpoint"):
        open_checkpoint(tmp_path)


def test_lfs_pointer_says_what_to_do(tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(CheckpointFormatError, match="git lfs pull"):
            open_checkpoint(tmp_path / name)


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 0", "pickle 2", "pickle 5"])
def test_pickle_that_would_run_code_is_refused(tmp_path: Path, form: str) -> None:
    file, proof = tmp_path / "pytorch_model.bin", tmp_path / "attacked"
    content = {"a": Attack(proof)}
    if form.startswith("pickle"):
        file.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UnsafeCheckpointError, match=r"pytorch_model\.bin was refused: .* could run code"):
        open_checkpoint(tmp_path)
    assert not proof.exists()


def test_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(UnsafeCheckpointError, match="Linear"):
        read_torch_file(tmp_path / "model.pt")


def test_dictionary_of_tensors_inside_a_training_checkpoint(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "optimizer": {"step": 1}, "state_dict": TENSORS}, tmp_path / "last.pt")
    assert_holds(open_checkpoint(tmp_path / "last.pt"), TENSORS)
    for content in ([torch.zeros(1)], {"a": 1}, {"a": {"b": 1}}, torch.zeros(2)):
        torch.save(content, tmp_path / "odd.pt")
        with pytest.raises(CheckpointFormatError, match="no dictionary of named tensors"):
            read_torch_file(tmp_path / "odd.pt")


def test_compressed_zip_is_read_rather_than_mapped(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w") as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    assert_holds(open_checkpoint(tmp_path / "packed.pt"), TENSORS)


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
                assert tuple(reader.tensor(name).shape) == reader.shape(name)
        except (CheckpointFormatError, UnsafeCheckpointError):
            continue
