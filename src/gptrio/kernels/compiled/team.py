"""The threads that take part in compiled steps."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

from gptrio.kernels.compiled.step import SLEEPING, WORKERS, enter

_PATIENCE = 20_000  # looks at a worker that is waking up, before the others go on without it


class Team:
    """Threads that wait, without the interpreter's lock, for steps to take part in; they sleep between bursts of them.

    Args:
        size: threads, the one that calls included.
    """

    def __init__(self, size: int) -> None:
        """Start the threads."""
        self.size = size
        self._lock = threading.Lock()
        self._control = np.zeros(WORKERS // 8 + 8 * size, dtype=np.int64)
        self._states = self._control[WORKERS // 8 :: 8][: size - 1]
        self._alarms = [threading.Semaphore(0) for _ in range(size - 1)]
        for worker in range(size - 1):
            threading.Thread(target=self._work, args=(worker,), name=f"gptrio-{worker}", daemon=True).start()

    def step(self, model: Any) -> int:
        """Run the step that a MODEL table (an array of one row) tells of; returns the threads that took part."""
        with self._lock:
            patience = 0
            for worker, alarm in enumerate(self._alarms):
                if self._states[worker] == SLEEPING:
                    alarm.release()
                    patience = _PATIENCE
            return enter(self._control.ctypes.data, -1, self.size - 1, model.ctypes.data, patience)

    def _work(self, worker: int) -> None:
        while True:
            self._alarms[worker].acquire()
            enter(self._control.ctypes.data, worker, 0, 0, 0)


_teams: dict[int, Team] = {}


def team_of(size: int) -> Team:
    """The team of so many threads, at most one for each processor that this process may use."""
    size = min(size, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if size not in _teams:
        if not _teams and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_teams.clear)  # a fork has none of the threads
        _teams[size] = Team(size)
    return _teams[size]
