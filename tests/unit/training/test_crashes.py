"""Whatever stops a save, and wherever: the run resumes from a whole checkpoint, and ends with the same bytes."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from gptrio.errors import CheckpointError, GptrioWarning
from gptrio.training import run_folder
from gptrio.training.checkpoint import find_checkpoint
from gptrio.training.manifest import verify_checkpoint
from gptrio.training.run_folder import RunFolder
from tests.unit.training import small_run
from tests.unit.training.failing_files import FailingFiles, Killed
from tests.unit.training.small_run import FACTS, SmallRun, train

STEPS = 4


class Before(NamedTuple):
    """A run before the save of its third update, which also removes its first checkpoint; and how it would end."""

    run: SmallRun
    folder: Path
    random_states: tuple[object, torch.Tensor]
    weights_at_the_end: bytes
    operations: int  # of the save


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Before:
    path, run = tmp_path_factory.mktemp("before"), SmallRun()
    with RunFolder(path / "saved") as folder:
        for _ in range(3):
            run.update()
            if run.step < 3:
                folder.save(run.step, run.write, FACTS)
    states = random.getstate(), torch.get_rng_state()
    undisturbed = train(path / "undisturbed", STEPS)
    before = Before(run, path / "saved", states, undisturbed, 0)
    files = FailingFiles("error", 0)
    save(before, path / "counted", files)
    return before._replace(operations=files.count)


def save(before: Before, path: Path, files: FailingFiles) -> Path | None:
    """Save the third update into a copy of the folder, with `files` between."""
    shutil.copytree(before.folder, path)
    random.setstate(before.random_states[0])  # type: ignore[arg-type] - as getstate gives it
    torch.set_rng_state(before.random_states[1])
    with RunFolder(path) as folder, files.installed():
        return small_run.save(folder, before.run)


def finish(path: Path) -> bytes:
    """The weights at the end of a new run, as of a new process, which saves nothing more."""
    run_folder._held.clear()
    return train(path, STEPS, save_every=100)


@pytest.mark.parametrize("mode", ["kill", "power cut"])
def test_run_resumes_from_a_stop_at_any_operation_of_a_save(tmp_path: Path, mode: str, before: Before) -> None:
    assert before.operations > 30
    resumed = []
    for at in range(1, before.operations + 1):
        path, files = tmp_path / str(at), FailingFiles(mode, at)
        with pytest.raises(Killed):
            save(before, path, files)
        files.damage(path)
        assert finish(path) == before.weights_at_the_end, f"operation {at}"
        found = find_checkpoint(path)
        assert found is not None
        resumed.append(found.name)
        assert {entry.name[:11] for entry in path.iterdir()} <= {"checkpoint-", ".training.l"}, "nothing is left behind"
    assert resumed == sorted(resumed), "from some operation on, the new checkpoint is there"
    assert set(resumed) == {"checkpoint-2", "checkpoint-3"}


def test_checkpoint_that_is_saved_anew_is_whole_at_any_stop(tmp_path: Path, before: Before) -> None:
    twice = before._replace(folder=tmp_path / "twice")
    save(before, twice.folder, FailingFiles("error", 0))
    (twice.folder / "checkpoint-2" / "model.safetensors").unlink()  # so that the old or the new one of 3 must be whole
    for at in range(1, before.operations + 1):
        path, files = tmp_path / str(at), FailingFiles("power cut", at)
        with pytest.raises(Killed):
            save(twice, path, files)
        files.damage(path)
        assert finish(path) == before.weights_at_the_end, f"operation {at}"
        assert find_checkpoint(path) == path / "checkpoint-3"


def test_no_error_of_any_operation_of_a_save_harms_what_was_there(tmp_path: Path, before: Before) -> None:
    failed = 0
    for at in range(1, before.operations + 1):
        path = tmp_path / str(at)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            saved = save(before, path, FailingFiles("error", at))
        if saved is None:
            failed += 1
            assert "No space left on device" in str(caught[0].message), f"operation {at}"
            names = {entry.name for entry in path.iterdir()} - {".training.lock"}  # whose removal may fail
            assert names == {"checkpoint-1", "checkpoint-2"}, f"operation {at}"
            verify_checkpoint(path / "checkpoint-1")
        else:
            verify_checkpoint(path / "checkpoint-3")
        verify_checkpoint(path / "checkpoint-2")
        assert finish(path) == before.weights_at_the_end, f"operation {at}"
    assert 20 < failed < before.operations


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path) as folder:
        yield folder


def test_first_failed_save_warns_and_the_second_in_a_row_raises(folder: RunFolder) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    def fine(path: Path) -> None:
        (path / "a").write_text("a")

    for step in 1, 3:  # a save that succeeds in between forgives the first failure
        with pytest.warns(GptrioWarning, match=rf"checkpoint-{step} could not be written: .*No space left on device"):
            assert folder.save(step, full, {}) is None
        assert folder.save(step + 1, fine, {}) == folder.path / f"checkpoint-{step + 1}"
    with pytest.warns(GptrioWarning, match="it will stop if the next"):
        folder.save(5, full, {})
    with pytest.raises(CheckpointError, match=r"checkpoint-6 could not be written: .*No space left on device"):
        folder.save(6, full, {})
    assert sorted(path.name for path in folder.path.glob("*")) == [".training.lock", "checkpoint-2", "checkpoint-4"]
