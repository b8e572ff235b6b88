"""Real kills (SIGKILL) of training processes at random times: resumed until done, they end with the same bytes."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

from gptrio.training.checkpoint import find_checkpoint
from tests.unit.training.small_run import train, train_in_process

STEPS = 8


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Starts processes that have imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.unit.training.small_run"])
    return context


def start(server: ForkServerContext, path: Path) -> ForkServerProcess:
    """A process that has just begun to train."""
    path.mkdir(exist_ok=True)
    receiver, sender = server.Pipe(duplex=False)
    process = server.Process(target=train_in_process, args=(path, STEPS, sender))
    process.start()
    assert receiver.recv() == "started"
    return process


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.long)])
def test_killed_runs_end_with_the_same_weights(tmp_path: Path, server: ForkServerContext, kills: int) -> None:
    expected, times = train(tmp_path / "undisturbed", STEPS), random.Random(kills)
    process, begin = start(server, tmp_path / "first"), time.perf_counter()
    process.join()
    duration = time.perf_counter() - begin
    killed = in_saves = resumed = finished = 0
    path = tmp_path / "0"
    while killed < kills or not (path / "weights.bin").exists():
        process = start(server, path)
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
