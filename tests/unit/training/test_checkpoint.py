"""Checkpoint folders: any damage is found and named, rotation keeps what is needed, one run writes at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptrio.errors import CheckpointError, CheckpointFormatError, CheckpointNotFoundError, GptrioWarning
from gptrio.training.checkpoint import (
    find_checkpoint,
    get_last_checkpoint,
    rotate_checkpoints,
    sweep,
    write_checkpoint,
)
from gptrio.training.manifest import MANIFEST, accept_changes, verify_checkpoint, warn_of_changes
from gptrio.training.run_folder import RunFolder

FACTS: dict[str, Any] = {"step": 1, "world_size": 1, "seed": 3, "train_rows": 100}
CONTENT = {"model.safetensors": b"weights", "trainer_state.json": b"{}", "inner/tokens.bin": b"\0\1\2"}


def write(folder: Path) -> None:
    for name, content in CONTENT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def checkpoints(folder: Path, *numbers: int) -> None:
    for number in numbers:
        write_checkpoint(folder / f"checkpoint-{number}", write, {**FACTS, "step": number})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_checkpoint_has_its_files_and_a_manifest(tmp_path: Path) -> None:
    checkpoints(tmp_path, 1)
    verify_checkpoint(tmp_path / "checkpoint-1")
    assert names(tmp_path) == ["checkpoint-1"]
    assert names(tmp_path / "checkpoint-1") == ["inner", MANIFEST, "model.safetensors", "trainer_state.json"]


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("damage", ["truncated", "longer", "flipped", "missing", "unreadable"])
def test_damaged_file_is_named_and_an_older_checkpoint_is_taken(tmp_path: Path, name: str, damage: str) -> None:
    checkpoints(tmp_path, 1, 2, 10)
    path = tmp_path / "checkpoint-10" / name
    content = path.read_bytes()
    path.unlink()
    if damage == "unreadable":
        path.mkdir()
    elif damage != "missing":
        changed = {
            "truncated": content[:-1],
            "longer": content + b"x",
            "flipped": bytes([content[0] ^ 1]) + content[1:],
        }
        path.write_bytes(changed[damage])
    with pytest.warns(
        GptrioWarning, match=rf"falling back to .*checkpoint-2, as .*checkpoint-10 is not whole: {name} "
    ):
        assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


@pytest.mark.parametrize("names", [None, ["trainer_state.json", "inner/tokens.bin", "more.txt"]])
def test_changes_on_purpose_are_accepted_and_damage_after_them_is_found(tmp_path: Path, names: Any) -> None:
    checkpoints(tmp_path, 1)
    folder = tmp_path / "checkpoint-1"
    (folder / "trainer_state.json").write_bytes(b"{ }")
    with pytest.raises(CheckpointFormatError, match=r"trainer_state.json has 3 bytes; 2 were written"):
        verify_checkpoint(folder)
    (folder / "trainer_state.json").write_bytes(b"[]")
    with pytest.raises(CheckpointFormatError, match=r"other bytes .*accept_changes\(folder\) takes it as it is"):
        verify_checkpoint(folder)
    (folder / "inner" / "tokens.bin").unlink()
    (folder / "more.txt").write_bytes(b"more")
    accept_changes(folder, names)
    verify_checkpoint(folder)
    (folder / "more.txt").write_bytes(b"mOre")
    with pytest.raises(CheckpointFormatError, match=r"more.txt has other bytes"):
        verify_checkpoint(folder)


def test_files_that_are_put_into_the_folder_before_become_part_of_the_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    for name, content in {"own/part.bin": b"own", "model.safetensors": b"older"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    checkpoints(tmp_path, 1)
    verify_checkpoint(folder)
    assert (folder / "own" / "part.bin").read_bytes() == b"own"
    assert (folder / "model.safetensors").read_bytes() == CONTENT["model.safetensors"]
    (folder / "own" / "part.bin").unlink()
    with pytest.raises(CheckpointFormatError, match=r"own/part.bin is missing"):
        verify_checkpoint(folder)
    checkpoints(tmp_path, 1)
    assert not (folder / "own").exists()  # a checkpoint is replaced as a whole


def test_weights_that_were_written_in_another_form_are_taken_as_they_are(tmp_path: Path) -> None:
    checkpoints(tmp_path, 1)
    folder = tmp_path / "checkpoint-1"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    verify_checkpoint(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointFormatError, match=r"model.safetensors is missing"):
        verify_checkpoint(folder)


def test_a_flipped_bit_in_any_byte_of_the_manifest_is_found(tmp_path: Path) -> None:
    checkpoints(tmp_path, 1)
    path = tmp_path / "checkpoint-1" / MANIFEST
    content = path.read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(CheckpointFormatError):
            verify_checkpoint(tmp_path / "checkpoint-1")


def test_every_truncated_manifest_is_found(tmp_path: Path) -> None:
    checkpoints(tmp_path, 1)
    path = tmp_path / "checkpoint-1" / MANIFEST
    content = path.read_bytes().rstrip()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointFormatError, match="is not whole"):
            verify_checkpoint(tmp_path / "checkpoint-1")


def test_no_whole_checkpoint_is_an_error_that_lists_what_is_wrong(tmp_path: Path) -> None:
    checkpoints(tmp_path, 1, 2)
    (tmp_path / "checkpoint-1" / "model.safetensors").unlink()
    (tmp_path / "checkpoint-2" / MANIFEST).unlink()
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    with pytest.raises(
        CheckpointFormatError, match=r"checkpoint-2 is not whole: trainer_state\.json.*checkpoint-1 is not"
    ):
        find_checkpoint(tmp_path)


def test_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-").mkdir()
    (tmp_path / "checkpoint-3").write_text("a file")
    assert find_checkpoint(tmp_path) is None
    assert find_checkpoint(tmp_path / "absent") is None
    assert get_last_checkpoint(tmp_path) is None
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint folder"):
        verify_checkpoint(tmp_path / "absent")


def test_last_checkpoint_is_that_of_the_highest_number(tmp_path: Path) -> None:
    checkpoints(tmp_path, 9, 10)
    assert get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10")


@pytest.mark.parametrize(
    ("limit", "best", "newest", "left"),
    [
        (None, None, None, [1, 2, 3, 10]),
        (0, None, None, [1, 2, 3, 10]),
        (3, None, None, [2, 3, 10]),
        (2, None, None, [3, 10]),
        (1, None, None, [3, 10]),
        (2, 1, None, [1, 10]),
        (3, 1, None, [1, 3, 10]),
        (2, 10, None, [3, 10]),
        (2, None, 2, [1, 2]),  # 3 and 10 are a former run's
    ],
)
def test_rotation_leaves_the_newest_and_the_best_and_at_least_two(
    tmp_path: Path, limit: int | None, best: int | None, newest: int | None, left: list[int]
) -> None:
    checkpoints(tmp_path, 1, 2, 3, 10)
    best_folder = str(tmp_path / f"checkpoint-{best}") if best else None
    rotate_checkpoints(tmp_path, limit, best_folder, tmp_path / f"checkpoint-{newest}" if newest else None)
    assert names(tmp_path) == sorted(f"checkpoint-{number}" for number in left)


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_sweep_removes_what_dead_processes_left_and_nothing_else(tmp_path: Path) -> None:
    dead = dead_process()
    kept = ["checkpoint-1", f".checkpoint-2.tmp-{os.getppid()}", ".cache", "notes.tmp-1"]
    for name in [*kept, f".checkpoint-3.tmp-{dead}", f".trash-checkpoint-1-{dead}", f".checkpoint-4.tmp-{os.getpid()}"]:
        write_folder = tmp_path / name
        write_folder.mkdir()
        write(write_folder)
    sweep(tmp_path)
    assert names(tmp_path) == sorted(kept)
    sweep(tmp_path, is_locked=True)  # then a living process of the same number is another program
    assert names(tmp_path) == sorted([name for name in kept if ".tmp-" not in name or not name.startswith(".")])


def test_sweep_gives_a_complete_save_the_name_that_it_lacks(tmp_path: Path) -> None:
    dead = dead_process()
    checkpoints(tmp_path, 1, 2)
    for name in ("checkpoint-1", "checkpoint-2"):
        (tmp_path / f".{name}.tmp-{dead}").mkdir()
        (tmp_path / name).rename(tmp_path / f".{name}.tmp-{dead}" / name)
    (tmp_path / f".checkpoint-2.tmp-{dead}" / "checkpoint-2" / "model.safetensors").write_bytes(b"weight")
    sweep(tmp_path)
    assert names(tmp_path) == ["checkpoint-1"]
    verify_checkpoint(tmp_path / "checkpoint-1")


HOLD = """
import sys
from gptrio.training.run_folder import RunFolder
with RunFolder(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_training_on_a_folder_is_refused_until_the_first_ends_in_any_way(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=-1, stdout=-1, text=True)
    assert first.stdout
    assert first.stdout.readline() == "held\n"
    with pytest.raises(
        CheckpointError, match=rf"is in use by another training \(process {first.pid} on .*another output"
    ):
        RunFolder(tmp_path).__enter__()
    first.kill()
    first.communicate()
    with RunFolder(tmp_path), pytest.raises(CheckpointError, match="in use by another training"):
        RunFolder(str(tmp_path)).__enter__()
    with RunFolder(tmp_path):
        pass
    assert names(tmp_path) == []


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file cannot hold checkpoints"):
        RunFolder(tmp_path / "file").__enter__()


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np, torch
from safetensors.torch import save_file
from gptrio.training.run_folder import RunFolder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def write(folder):
    save_file({"a": torch.zeros(50_000)}, folder / "model.safetensors")
with RunFolder(sys.argv[1]) as folder:
    assert folder.save(1, write, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    assert folder.save(2, write, {}) is None
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert folder.save(3, write, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    assert folder.save(4, write, {}) is None
    folder.save(5, write, {})
"""


def test_files_that_the_system_cuts_off_leave_the_older_checkpoints(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "CheckpointError" in last
    assert "checkpoint-5 could not be written: " in last
    assert "File too large" in last
    assert "checkpoint-2 could not be written" in done.stderr
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3"]
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-3"


def test_changed_arguments_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints(tmp_path, 1)
    folder = tmp_path / "checkpoint-1"
    warn_of_changes(folder, {**FACTS, "new": 1})  # as nothing is known of what was not there
    with pytest.warns(GptrioWarning, match=r"other arguments: world_size 1 -> 2, train_rows 100 -> 90;"):
        warn_of_changes(folder, {**FACTS, "world_size": 2, "train_rows": 90, "step": 5})
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    with pytest.warns(GptrioWarning, match=r"threads \d+ -> 77: results may differ"):
        warn_of_changes(folder, FACTS)
