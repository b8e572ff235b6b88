"""Ctrl-C that ends a process also while compiled code, which Python cannot interrupt, does not return."""

from __future__ import annotations

import os
import select
import signal
import threading
from types import FrameType

_raised = threading.Event()  # since the last Ctrl-C


def raise_interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as Python's own handler does, and note that this was possible."""
    _raised.set()
    signal.default_int_handler(number, frame)


def end_stuck_process(grace: float = 3.0) -> None:
    """From now on, let Ctrl-C end the process also while compiled code keeps Python from raising KeyboardInterrupt.

    Tokenizing a text of many megabytes, for one, takes a minute. A thread looks whether Python has raised it since
    Ctrl-C was pressed. Where a program handles or ignores Ctrl-C itself, and on Windows, nothing changes.

    Args:
        grace: seconds in which KeyboardInterrupt is to be raised, before the process ends with 130.
    """
    if os.name == "nt" or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # there, pipes can block
        return
    signal.signal(signal.SIGINT, raise_interrupt)
    pressed, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    threading.Thread(target=_end_where_stuck, args=(pressed, grace), daemon=True).start()


def _end_where_stuck(pressed: int, grace: float) -> None:
    """End the process where Python does not call the handler soon after a Ctrl-C that the pipe tells of."""
    while number := os.read(pressed, 1):
        if number[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is raise_interrupt:
            if not _raised.wait(grace):
                os._exit(130)
            while select.select([pressed], [], [], 0)[0]:  # one call of the handler may answer several signals
                os.read(pressed, 1)
            _raised.clear()
