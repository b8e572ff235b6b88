"""Which files are weights: preference, variants, the hub's cache, indexes that are malformed or hostile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gptrio.checkpoint.load import open_checkpoint
from gptrio.checkpoint.locate import locate_weights
from gptrio.errors import CheckpointFormatError, CheckpointNotFoundError, UnsafeCheckpointError
from gptrio.hub import HubOptions
from tests.unit.checkpoint.layouts import TENSORS, assert_holds, write_layout, write_shards


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
