"""The threads of a compiled step, held up at any line: every schedule keeps them together, and off freed memory.

`_run_leader`, `_worker_loop`, `_barrier` and `Team._wake` run as they are written, as Python, one atomic operation at a
time, in an order that a seed chooses. A thread may be held up for long at any of them.
"""

from __future__ import annotations

import random
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from gptrio.kernels.cpu_decode import step
from gptrio.kernels.cpu_decode import thread_pool as team
from gptrio.models.base.compiled import CompiledStep
from tests.unit.models.test_compiled import build, ids_of, largest_error

WORKERS, STEPS, PHASES = 3, 4, 3


class Schedule:
    """Threads that run one at a time; before each atomic operation, chance says whose turn it is."""

    def __init__(self, seed: int, threads: int) -> None:
        self.chance = random.Random(seed)
        self.turns = [threading.Semaphore(0) for _ in range(threads)]
        self.running = set(range(threads))
        self.held: dict[int, int] = {}
        self.mine = threading.local()

    def switch(self) -> None:
        me, chance = self.mine.number, self.chance
        if chance.random() < 0.05:
            self.held[chance.choice(sorted(self.running))] = chance.choice((3, 30, 300))
        self.held = {thread: left - 1 for thread, left in self.held.items() if left > 1}
        able = sorted(self.running - self.held.keys()) or sorted(self.running)
        self.hand_over(me, me if me in able and chance.random() < 0.5 else chance.choice(able))

    def hand_over(self, me: int, other: int) -> None:
        if other != me:
            self.turns[other].release()
            self.turns[me].acquire()

    def end(self, me: int) -> None:
        self.running.discard(me)
        if self.running:
            self.turns[min(self.running)].release()


class World:
    """Memory, the threads of a team, and what must hold of them."""

    def __init__(self, seed: int) -> None:
        self.schedule = Schedule(seed, WORKERS + 1)
        self.memory = np.zeros(step.WORKERS // 8 + 8 * (WORKERS + 1), dtype=np.int64)
        self._states = self.memory[step.WORKERS // 8 :: 8][:WORKERS]  # as `Team._wake` knows them
        self._alarms = [Alarm() for _ in range(WORKERS)]
        self._closed = False
        self.alive = 0  # the model whose memory is there
        self.done: dict[int, list[set[int]]] = {}
        self.faults: list[str] = []
        self.over = False
        names = {
            "get": self.get, "put": self.put, "replace": self.replace, "add_and_get": self.add_and_get,
            "pause": self.schedule.switch, "_let_others_run": self.schedule.switch, "_run": self.run,
            "_SPINS": 3, "_IDLE": 12,
        }  # fmt: skip
        functions = step._barrier, step._run_leader, step._worker_loop
        self.barrier, self.run_leader, self.worker_loop = (self.as_python(f, names) for f in functions)

    @staticmethod
    def as_python(function: Any, names: dict[str, Any]) -> Callable[..., Any]:
        return types.FunctionType(function.py_func.__code__, {**vars(step), **names})

    def get(self, address: int) -> int:
        self.schedule.switch()
        return int(self.memory[address // 8])

    def put(self, address: int, value: int) -> None:
        self.schedule.switch()
        self.memory[address // 8] = value

    def replace(self, address: int, expected: int, value: int) -> bool:
        self.schedule.switch()
        if self.memory[address // 8] != expected:
            return False
        self.memory[address // 8] = value
        return True

    def add_and_get(self, address: int, amount: int) -> int:
        self.schedule.switch()
        self.memory[address // 8] += amount
        return int(self.memory[address // 8])

    def run(self, control: int, model: int, thread: int, threads: int) -> int:
        """In place of the step's arithmetic: look where everybody is, and meet."""
        for phase in range(1, PHASES + 1):
            self.schedule.switch()
            done = self.done.setdefault(model, [set(range(threads)), *(set() for _ in range(PHASES))])
            if self.alive != model:
                self.faults.append(f"thread {thread} works on {model} when {self.alive} is there")
            if thread in done[phase] or thread >= threads:
                self.faults.append(f"two threads are number {thread}")
            if done[phase - 1] != set(range(threads)):
                self.faults.append(f"thread {thread} is in phase {phase}, before all have left the one before")
            done[phase].add(thread)
            self.barrier(control, phase, threads)
        return PHASES

    def leader(self) -> None:
        for model in range(1, STEPS + 1):
            for _ in range(self.schedule.chance.choice((0, 0, 50))):
                self.schedule.switch()
            self.alive = model
            threads = self.run_leader(0, WORKERS, model, team.Team._wake(self))  # type: ignore[arg-type]  # its alarms and states
            if self.done[model][1:] != [set(range(threads))] * PHASES:
                self.faults.append(f"the step ended before its {threads} threads")
            self.alive = 0
        self.over = True

    def worker(self, number: int) -> None:
        while not self.over:
            self.schedule.switch()
            if self._alarms[number].rung:
                self._alarms[number].rung -= 1
                self.worker_loop(0, number)

    def play(self) -> list[str]:
        def thread(number: int) -> None:
            self.schedule.mine.number = number
            self.schedule.turns[number].acquire()
            try:
                self.leader() if number == 0 else self.worker(number - 1)
            finally:
                self.over = self.over or number == 0
                self.schedule.end(number)

        threads = [threading.Thread(target=thread, args=(n,), daemon=True) for n in range(WORKERS + 1)]
        for each in threads:
            each.start()
        self.schedule.turns[0].release()
        for each in threads:
            each.join(30)
        return [*self.faults, *("a thread waits for ever" for each in threads if each.is_alive())]


class Alarm:
    """A semaphore, as far as a schedule needs one."""

    rung = 0

    def release(self) -> None:
        self.rung += 1


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_threads_held_up_at_any_line_keep_together(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "_PATIENCE", 10)
    workers = set()
    for seed in range(first, first + 50):
        world = World(seed)
        assert world.play() == [], seed
        workers |= {len(done[1]) for done in world.done.values()}
    assert workers == set(range(1, WORKERS + 2))  # alone, with all, and all between


def test_more_threads_than_processors_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTRIO_GUARDS", "1")
    monkeypatch.setattr("gptrio.models.base.compiled._SMALL", 0)
    crowd = team.Team(9)
    monkeypatch.setattr(team, "team_of", lambda _: crowd)
    assert largest_error(build("gpt2"), ids_of(3, 60)) < 2e-5
    crowd.close()


def test_a_team_starts_again_in_a_forked_process_and_ends_with_the_program() -> None:
    pair = team.Team(2)
    assert pair._workers is None
    pair._start()
    assert pair._workers is not None
    (worker,) = pair._workers
    pair._forget()  # what a fork does
    assert pair._workers is None
    assert not pair._states.any()
    pair._start()
    assert pair._workers is not None
    (other,) = pair._workers
    pair.close()
    assert not other.is_alive()
    assert worker.is_alive()  # of the process before, which goes on without the fork


def test_a_look_up_by_many_threads_makes_one_team(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "_teams", {})
    found: list[team.Team] = []
    barrier = threading.Barrier(8)

    def look_up() -> None:
        barrier.wait()
        found.append(team.team_of(2))

    threads = [threading.Thread(target=look_up) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len({id(each) for each in found}) == 1


def test_a_step_has_a_team_of_the_callers_threads() -> None:
    step_of_small: Any = build("gpt2").compiled_step(1)
    assert isinstance(step_of_small, CompiledStep)
    assert step_of_small.threads == 1  # so small a model is no faster by several
