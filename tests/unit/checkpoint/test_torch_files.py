"""Torch files: truncated, compressed, nested, and pickles that would run code."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from gptrio.checkpoint.load import open_checkpoint
from gptrio.checkpoint.torch_files import read_torch_file
from gptrio.errors import CheckpointFormatError, UnsafeCheckpointError
from tests.unit.checkpoint.layouts import TENSORS, assert_holds


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.95])
def test_truncated_torch_file(tmp_path: Path, share: float, legacy: bool) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1000)}, file, _use_new_zipfile_serialization=not legacy)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointFormatError, match=r"pytorch_model\.bin is not a whole torch checkpoint"):
        open_checkpoint(tmp_path)


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
