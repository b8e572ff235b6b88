"""The threads that take part in compiled steps. README.md argues that they do no harm."""

from __future__ import annotations

import atexit
import os
import threading
import weakref

import numpy as np

from gptrio.kernels.cpu_decode.step import SLEEPING, WAKING, WORKERS, enter

_PATIENCE = 20_000  # looks at a worker that is waking up, before the others go on without it
_AT_MOST = 5.0  # seconds that the end of the program waits for a worker


class Team:
    """Threads that wait, without the interpreter's lock, for steps to take part in; they sleep between bursts of them.

    They are started by the first step, in a process that was forked later too, and end with the program.

    Args:
        size: threads, the one that calls included.
    """

    def __init__(self, size: int) -> None:
        """Make a team without threads."""
        self.size = size
        self._forget()
        _living.add(self)

    def _forget(self) -> None:
        """Be a team whose threads were not started: there are none of them in a process that was just forked."""
        self._lock = threading.RLock()  # a signal's handler may run a step in the middle of one
        self._control = np.zeros(WORKERS // 8 + 8 * self.size, dtype=np.int64)
        self._address = int(self._control.ctypes.data)
        self._states = self._control[WORKERS // 8 :: 8][: self.size - 1]
        self._alarms = [threading.Semaphore(0) for _ in range(self.size - 1)]
        self._workers: list[threading.Thread] | None = None
        self._closed = False

    def step(self, address: int) -> int:
        """Run the step that the MODEL table at an address describes; returns the threads that took part."""
        with self._lock:
            if self._workers is None:
                self._start()
            return int(enter(self._address, -1, self.size - 1, address, self._wake()))

    def _start(self) -> None:
        self._workers = []
        for worker in range(self.size - 1):
            thread = threading.Thread(target=self._work, args=(worker,), name=f"gptrio-{worker}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads may be started: the step does without
                return
            self._workers.append(thread)

    def _wake(self) -> int:
        """Ring for the workers that sleep; how often to look for them then."""
        spin_limit = 0
        for worker, alarm in enumerate(self._alarms):
            if self._states[worker] == SLEEPING and not self._closed:
                self._states[worker] = WAKING
                alarm.release()
                spin_limit = _PATIENCE
        return spin_limit

    def _work(self, worker: int) -> None:
        control, alarm = self._control, self._alarms[worker]
        while True:
            alarm.acquire()
            if self._closed:
                return
            enter(control.ctypes.data, worker, 0, 0, 0)

    def close(self) -> None:
        """End the threads; steps go on with the thread that calls alone."""
        if not self._lock.acquire(timeout=_AT_MOST):
            return  # a daemon thread of the user's is in a step
        try:
            self._closed = True
            for alarm in self._alarms:
                alarm.release()
            for thread in self._workers or ():
                thread.join(_AT_MOST)
        finally:
            self._lock.release()


_living: weakref.WeakSet[Team] = weakref.WeakSet()
_teams: dict[int, Team] = {}
_look_up = threading.RLock()


def team_of(size: int) -> Team:
    """The team of so many threads, at most one for each processor that this process may use."""
    size = min(size, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with _look_up:
        if size not in _teams:
            _teams[size] = Team(size)
        return _teams[size]


def _forget_all() -> None:
    """What a forked process does first: the locks may be held by threads that it does not have."""
    global _look_up
    _look_up = threading.RLock()
    for team in list(_living):
        team._forget()


def _close_all() -> None:
    for team in list(_living):
        team.close()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
