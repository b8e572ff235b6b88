"""Small checkpoints in every layout, and a check of what a reader gives of them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from gptrio.checkpoint.load import TensorReader

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


def assert_holds(reader: TensorReader, tensors: dict[str, torch.Tensor]) -> None:
    assert set(reader.keys()) == set(tensors)
    for name, expected in tensors.items():
        assert reader.dtype(name) == expected.dtype
        assert torch.equal(reader.tensor(name), expected)
