"""Writing weights: files, shards, shared and unusual tensors, and nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gptrio.checkpoint import write
from gptrio.checkpoint.load import open_checkpoint
from gptrio.checkpoint.shards import parse_size
from gptrio.checkpoint.write import save_state_dict
from gptrio.errors import CheckpointError, GptrioWarning, OptionError

STATE = {f"layer.{i}": torch.full((10,), float(i)) for i in range(5)}  # 40 bytes each


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(folder: Path, **options: object) -> dict[str, torch.Tensor]:
    reader = open_checkpoint(folder, **options)  # type: ignore[arg-type]
    return {name: reader.tensor(name) for name in reader.keys()}  # noqa: SIM118 - not a mapping


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_one_file(tmp_path: Path, safe: bool, variant: str | None) -> None:
    written = save_state_dict(STATE, tmp_path / "new", safe_serialization=safe, variant=variant)
    base = "model.safetensors" if safe else "pytorch_model.bin"
    stem, _, extension = base.rpartition(".")
    expected = f"{stem}.{variant}.{extension}" if variant else base
    assert [path.name for path in written] == names(tmp_path / "new") == [expected]
    assert_same(read(tmp_path / "new", variant=variant), STATE)


@pytest.mark.parametrize("safe", [True, False])
def test_shards_and_index(tmp_path: Path, safe: bool) -> None:
    save_state_dict(STATE, tmp_path, max_shard_size=80, safe_serialization=safe)
    base, extension = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    shards = [f"{base}-0000{i}-of-00003.{extension}" for i in (1, 2, 3)]
    assert names(tmp_path) == [*shards, f"{base}.{extension}.index.json"]
    index = json.loads((tmp_path / f"{base}.{extension}.index.json").read_text())
    assert index["metadata"] == {"total_parameters": 50, "total_size": 200}
    assert index["weight_map"]["layer.4"] == shards[2]
    assert_same(read(tmp_path), STATE)


def test_tensor_larger_than_a_shard_stands_alone(tmp_path: Path) -> None:
    save_state_dict({"small": torch.zeros(1), "large": torch.zeros(100), "last": torch.zeros(1)}, tmp_path, "50B")
    assert len(names(tmp_path)) == 4


@pytest.mark.parametrize("safe", [True, False])
def test_shared_tensor_is_stored_once(tmp_path: Path, safe: bool) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    save_state_dict({"wte": weight, "lm_head": weight}, tmp_path, safe_serialization=safe)
    found = read(tmp_path)
    assert_same(found, {"wte": weight} if safe else {"wte": weight, "lm_head": weight})  # torch's files know both names
    assert len({tensor.data_ptr() for tensor in found.values()}) == 1


@pytest.mark.parametrize("safe", [True, False])
def test_views_transposes_and_overlaps(tmp_path: Path, safe: bool) -> None:
    whole = torch.arange(100_000.0)
    state = {
        "left": whole[:10],
        "overlap": whole[5:15],
        "far": whole[99_900:],
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 3),
        "other empty": torch.zeros(0),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    save_state_dict(state, tmp_path, safe_serialization=safe)
    assert_same(read(tmp_path), state)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 6000


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("size", ["5GB", 80])
def test_failed_save_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, safe: bool, size: int | str
) -> None:
    save_state_dict(STATE, tmp_path, size, safe)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    writer = "_write_safetensors" if safe else "_write_torch_file"
    real = getattr(write, writer)
    calls = []

    def fail_at_last(*arguments: object) -> None:
        real(*arguments)
        calls.append(arguments)
        if len(calls) == (1 if size == "5GB" else 3):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, writer, fail_at_last)
    with pytest.raises(OSError, match="No space left"):
        save_state_dict({name: tensor + 1 for name, tensor in STATE.items()}, tmp_path, size, safe)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_of_an_earlier_save_are_removed(tmp_path: Path) -> None:
    (tmp_path / "model_card.safetensors").touch()
    save_state_dict(STATE, tmp_path, max_shard_size=40)
    assert len(names(tmp_path)) == 7
    save_state_dict(STATE, tmp_path, max_shard_size=80)
    assert len(names(tmp_path)) == 5
    save_state_dict(STATE, tmp_path, variant="fp16")
    save_state_dict(STATE, tmp_path)
    assert names(tmp_path) == ["model.fp16.safetensors", "model.safetensors", "model_card.safetensors"]
    save_state_dict(STATE, tmp_path, max_shard_size=80)
    assert "model.safetensors" not in names(tmp_path)


def test_torch_file_behind_safetensors_warns(tmp_path: Path) -> None:
    save_state_dict(STATE, tmp_path)
    with pytest.warns(GptrioWarning, match=r"model\.safetensors is older .* loading prefers it"):
        save_state_dict(STATE, tmp_path, safe_serialization=False)


def test_impossible_saves(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tensor w is on the meta device"):
        save_state_dict({"w": torch.zeros(2, device="meta")}, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        save_state_dict(STATE, tmp_path / "file")


def test_sizes() -> None:
    assert [parse_size(size) for size in (7, "8", "5GB", "1.5 MB", "2KiB")] == [7, 8, 5 * 10**9, 1_500_000, 2048]
    for bad in ("", "GB", "5 parsecs", "-1GB", 0):
        with pytest.raises(OptionError, match="max_shard_size"):
            parse_size(bad)


def test_files_open_with_safetensors_itself(tmp_path: Path) -> None:
    from safetensors import safe_open

    save_state_dict(STATE, tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert sorted(file.keys()) == sorted(STATE)
