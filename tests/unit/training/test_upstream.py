"""Checkpoint folders that Transformers' Trainer wrote: resumed bit for bit, broken ones named, code in them refused."""

from __future__ import annotations

import os
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from gptrio.checkpoint.random_state_files import read_random_states
from gptrio.errors import CheckpointError, CheckpointFormatError, GptrioWarning, UnsafeCheckpointError
from gptrio.training.checkpoint import find_checkpoint
from gptrio.training.manifest import verify_checkpoint
from gptrio.training.schedules import get_scheduler
from gptrio.training.snapshot import load_snapshot

ARGUMENTS: dict[str, Any] = {
    "max_steps": 6,
    "save_steps": 3,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "warmup_steps": 2,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


class Watch(transformers.TrainerCallback):
    """Notes the states of the random generators when the third update's checkpoint is written."""

    def __init__(self) -> None:
        self.random: list[Any] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            self.random = [random.getstate(), np.random.get_state(), torch.get_rng_state()]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[Any]]:
    """A folder with checkpoints 3 and 6, the trainer that wrote them, and the random states at 3."""
    path, watch = tmp_path_factory.mktemp("upstream"), Watch()
    config = transformers.GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=16)
    torch.manual_seed(0)
    data = [{"input_ids": (ids := torch.randint(50, (8,))), "labels": ids} for _ in range(20)]
    trainer = transformers.Trainer(
        transformers.GPT2LMHeadModel(config),
        transformers.TrainingArguments(str(path), **ARGUMENTS),
        train_dataset=data,
        callbacks=[watch],
    )
    trainer.train()
    return path, trainer, watch.random


@pytest.fixture
def folder(upstream: tuple[Path, Any, list[Any]], tmp_path: Path) -> Path:
    shutil.copytree(upstream[0], tmp_path / "run")
    return tmp_path / "run"


def new_parts(trainer: Any) -> dict[str, Any]:
    """A model with new weights, and a new optimizer and schedule, whose groups are those of the reference."""
    model = transformers.GPT2LMHeadModel(trainer.model.config)
    decayed = trainer.get_decay_parameter_names(model)
    named = list(model.named_parameters())
    groups = [
        {"params": [value for name, value in named if name in decayed], "weight_decay": 0.1},
        {"params": [value for name, value in named if name not in decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, fused=True)
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": get_scheduler("linear", optimizer, 2, 6),
        "scaler": None,
    }


def test_state_is_restored_bit_for_bit(folder: Path, upstream: tuple[Path, Any, list[Any]]) -> None:
    _, trainer, states = upstream
    parts = new_parts(trainer)
    assert load_snapshot(folder / "checkpoint-3", **parts) == (None, {})
    assert random.getstate() == states[0]
    for one, other in zip(np.random.get_state(), states[1], strict=True):
        assert np.array_equal(one, other)
    assert torch.equal(torch.get_rng_state(), states[2])
    load_snapshot(folder / "checkpoint-6", **parts)
    state, expected = parts["optimizer"].state_dict(), trainer.optimizer.state_dict()
    assert state["param_groups"] == expected["param_groups"]
    assert state["state"].keys() == expected["state"].keys()
    for i, values in expected["state"].items():
        assert all(torch.equal(state["state"][i][key], value) for key, value in values.items())
    assert parts["scheduler"].state_dict() == trainer.lr_scheduler.state_dict()


def test_newest_whole_folder_is_found_and_its_arguments_are_never_read(folder: Path) -> None:
    (folder / "checkpoint-6" / "training_args.bin").write_bytes(b"not even a pickle")
    assert find_checkpoint(folder) == folder / "checkpoint-6"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "config.json", "trainer_state.json"]
)
def test_truncated_or_missing_file_is_named(folder: Path, name: str) -> None:
    path = folder / "checkpoint-6" / name
    os.truncate(path, path.stat().st_size * 2 // 3)
    with pytest.warns(GptrioWarning, match=rf"checkpoint-3, as .*checkpoint-6 is not whole: {name} is not whole"):
        assert find_checkpoint(folder) == folder / "checkpoint-3"
    if name == "trainer_state.json":
        path.unlink()
        with pytest.raises(CheckpointFormatError, match=r"trainer_state\.json, which is written last, is missing"):
            verify_checkpoint(folder / "checkpoint-6")


def test_flipped_bit_of_a_tensor_in_an_archive_is_found(folder: Path) -> None:
    path = folder / "checkpoint-6" / "optimizer.pt"
    with zipfile.ZipFile(path) as archive:
        tensors = [entry for entry in archive.infolist() if "/data/" in entry.filename]
        largest = max(tensors, key=lambda entry: entry.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointFormatError, match=r"optimizer\.pt is damaged at .*data/"):
        verify_checkpoint(folder / "checkpoint-6")


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_in_a_state_is_refused(
    folder: Path, tmp_path: Path, name: str, upstream: tuple[Path, Any, list[Any]]
) -> None:
    torch.save({"state": Attack(tmp_path / "attacked")}, folder / "checkpoint-6" / name)
    with pytest.raises(UnsafeCheckpointError, match="mkdir"):
        load_snapshot(folder / "checkpoint-6", **new_parts(upstream[1]))
    assert not (tmp_path / "attacked").exists()


def test_states_of_all_devices_are_read(tmp_path: Path) -> None:
    states = {
        "cpu": torch.get_rng_state(),
        "cuda": [torch.arange(9, dtype=torch.uint8), torch.zeros(0, dtype=torch.uint8)],
    }
    torch.save(states, tmp_path / "rng_state.pth")
    read = read_random_states(tmp_path / "rng_state.pth")
    assert [state.tolist() for state in read["cuda"]] == [list(range(9)), []]
    assert read["cpu"].tolist() == states["cpu"].tolist()


@pytest.mark.parametrize(
    "state",
    [
        {"numpy": np.array([1.5])},
        {"numpy": np.array([1], ">u4")},
        {"numpy": np.array([object()])},
        {"numpy": np.zeros((2, 2), np.uint32)},
        {"cpu": torch.zeros(3)},
        {"numpy": {"nested": 1}},
        {"numpy": b"bytes"},
        [1, 2],
    ],
)
def test_what_is_no_random_state_is_refused(tmp_path: Path, state: object) -> None:
    torch.save(state, tmp_path / "rng_state.pth")
    with pytest.raises((CheckpointFormatError, UnsafeCheckpointError)):
        read_random_states(tmp_path / "rng_state.pth")


def test_functions_that_stand_for_numpys_refuse_other_arguments(tmp_path: Path) -> None:
    torch.save({"numpy": np.random.get_state()}, tmp_path / "rng_state.pth")
    with zipfile.ZipFile(tmp_path / "rng_state.pth") as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    name = next(entry for entry in entries if entry.endswith("data.pkl"))
    for old, new in ((b"u4", b"O8"), (b"latin1", b"rot_13"), (b"ndarray", b"memmap")):
        changed = entries[name].replace(old, new)
        assert changed != entries[name]
        with zipfile.ZipFile(tmp_path / "changed.pth", "w") as archive:
            for entry, content in entries.items():
                archive.writestr(entry, changed if entry == name else content)
        with pytest.raises((CheckpointFormatError, UnsafeCheckpointError)):
            read_random_states(tmp_path / "changed.pth")


def test_random_states_of_numbers_that_no_generator_has_are_refused(folder: Path, upstream: Any) -> None:
    torch.save({"python": (3, (1, 2), None)}, folder / "checkpoint-6" / "rng_state.pth")
    with pytest.raises(CheckpointFormatError, match=r"rng_state\.pth holds no states of random generators"):
        load_snapshot(folder / "checkpoint-6", **new_parts(upstream[1]))


def test_state_of_another_model_is_refused(folder: Path, upstream: tuple[Path, Any, list[Any]]) -> None:
    parts = new_parts(upstream[1])
    parts["model"].transformer.wpe.weight = nn.Parameter(torch.zeros(17, 16))
    parts["optimizer"].param_groups[0]["params"][1] = parts["model"].transformer.wpe.weight
    with pytest.raises(CheckpointError, match=r"exp_avg of transformer\.wpe\.weight in shape \(16, 16\)"):
        load_snapshot(folder / "checkpoint-6", **parts)
    parts = new_parts(upstream[1])
    del parts["optimizer"].param_groups[1]
    with pytest.raises(CheckpointError, match="different number of parameter groups"):
        load_snapshot(folder / "checkpoint-6", **parts)


def test_state_that_is_no_dictionary_is_refused(folder: Path, upstream: tuple[Path, Any, list[Any]]) -> None:
    torch.save([1], folder / "checkpoint-6" / "scheduler.pt")
    with pytest.raises(CheckpointFormatError, match=r"scheduler\.pt holds a list; expected a dictionary"):
        load_snapshot(folder / "checkpoint-6", **new_parts(upstream[1]))
