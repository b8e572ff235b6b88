"""Real kills (SIGKILL) of training processes at random times: resumed until done, they end with the same bytes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import pytest

from gptrio.training.checkpoint import find_checkpoint
from tests.unit.training import small_run, trainer_run
from tests.unit.training.processes import server


class Training(NamedTuple):
    """How a process trains, and with what argument; the final weights without kills."""

    run: Callable[[Path, int, Connection], None]
    undisturbed: Callable[[Path], bytes]
    argument: int


TRAININGS: dict[str, Training] = {
    "plain loop": Training(small_run.train_in_process, lambda path: small_run.train(path, 8), 8),
    "Trainer": Training(trainer_run.train_in_process, trainer_run.train, 0),
    "Trainer with workers": Training(trainer_run.train_in_process, trainer_run.train, 2),
}


def start(path: Path, training: Training) -> ForkServerProcess:
    """A process that has just begun to train."""
    path.mkdir(exist_ok=True)
    receiver, sender = server().Pipe(duplex=False)
    process = server().Process(target=training.run, args=(path, training.argument, sender))
    process.start()
    assert receiver.recv() == "started"
    return process


@pytest.mark.parametrize(
    ("name", "kills"),
    [("Trainer", 3), *(pytest.param(name, 50, marks=pytest.mark.long) for name in TRAININGS)],
)
def test_killed_runs_end_with_the_same_weights(tmp_path: Path, name: str, kills: int) -> None:
    training, times = TRAININGS[name], random.Random(kills)
    expected = training.undisturbed(tmp_path / "undisturbed")
    process, begin = start(tmp_path / "first", training), time.perf_counter()
    while not (tmp_path / "first" / "weights.bin").exists():
        time.sleep(0.01)
    duration = time.perf_counter() - begin
    process.join()
    killed = in_saves = resumed = finished = 0
    path = tmp_path / "0"
    while killed < kills or not (path / "weights.bin").exists():
        process = start(path, training)
        process.join(times.uniform(0, duration) if killed < kills else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            killed += 1
            in_saves += any(path.glob(".checkpoint-*"))
            resumed += find_checkpoint(path) is not None
            continue
        assert process.exitcode == 0
        assert (path / "weights.bin").read_bytes() == expected
        finished += 1
        path = path if killed == kills else tmp_path / str(killed)
    print(f"{killed} kills, {in_saves} of them during a save; resumed {resumed} times; {finished} runs, all equal")
    assert 0 < resumed <= killed == kills
