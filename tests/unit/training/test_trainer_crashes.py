"""Whatever stops a whole run of `Trainer`, and wherever: it resumes, and ends with the same bytes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from gptrio.errors import GptrioWarning
from gptrio.training import run_folder
from gptrio.training.checkpoint import find_checkpoint
from gptrio.training.manifest import verify_checkpoint
from tests.cases import first
from tests.unit.training.failing_files import FailingFiles, Killed
from tests.unit.training.trainer_run import train

RUN = {"max_steps": 4, "save_total_limit": 1}  # each checkpoint but the first also removes one


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return train(tmp_path_factory.mktemp("undisturbed"), **RUN)


def count_operations(path: Path) -> int:
    """Number of the operations that change files in one run."""
    path.mkdir()
    files = FailingFiles("error", 0)
    with files.installed():
        train(path, **RUN)
    return files.count


def finish(path: Path) -> bytes:
    """The weights at the end of a run of a new process, which begins anew where no checkpoint is whole."""
    run_folder._held.clear()
    for lock in path.glob(".training.lock"):
        lock.unlink()  # the system frees it with the process
    return train(path, **RUN)


@pytest.mark.parametrize("every", first([13, 1]))
@pytest.mark.parametrize("mode", ["kill", "power cut"])
def test_run_killed_at_any_file_operation_ends_with_the_same_bytes(
    tmp_path: Path, mode: str, every: int, expected: bytes
) -> None:
    operations, resumed = count_operations(tmp_path / "counted"), set()
    assert operations > 100
    for at in range(1, operations + 1, every):
        path, files = tmp_path / str(at), FailingFiles(mode, at)
        with pytest.raises(Killed), files.installed():
            train(path, **RUN)
        files.damage(path)
        found = find_checkpoint(path) if path.exists() else None
        resumed.add(found and found.name)
        assert finish(path) == expected, f"operation {at}"
    assert resumed == {None, *(f"checkpoint-{step}" for step in range(1, 5))}


@pytest.mark.parametrize("every", first([13, 1]))
def test_run_in_which_any_file_operation_fails_loses_nothing(tmp_path: Path, every: int, expected: bytes) -> None:
    operations, warned = count_operations(tmp_path / "counted"), 0
    for at in range(1, operations + 1, every):
        path, files = tmp_path / str(at), FailingFiles("error", at)
        path.mkdir()
        with warnings.catch_warnings(record=True) as caught, files.installed():
            warnings.simplefilter("always", GptrioWarning)
            weights = train(path, **RUN)
        assert weights == expected, f"operation {at}"
        warned += any("No space left on device" in str(warning.message) for warning in caught)
        newest = find_checkpoint(path)
        assert newest is not None and newest.name in {"checkpoint-3", "checkpoint-4"}, f"operation {at}"
        verify_checkpoint(newest)
        assert finish(path) == expected, f"operation {at}"
    assert warned > 0
