"""Ctrl-C that ends a process wherever it is: in compiled code, which Python cannot interrupt, or in an import."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, cast

_raised = threading.Event()  # since the last Ctrl-C
_postponed = threading.Event()  # until an import has ended
_PAUSE = 0.05  # seconds


def raise_interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as Python's own handler does, and note that this was possible.

    Not during an import: the initialization of compiled modules loses exceptions (numpy's) or ends the process by them
    (torch's). The thread of `end_stuck_process` tries again soon.
    """
    if _is_import(frame):
        _postponed.set()
        return
    _postponed.clear()
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
    sys.unraisablehook = _raise_again
    pressed, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    threading.Thread(target=_end_where_stuck, args=(pressed, grace), daemon=True).start()


def _end_where_stuck(pressed: int, grace: float) -> None:
    """End the process where Python does not call the handler soon after a Ctrl-C that the pipe tells of."""
    while number := os.read(pressed, 1):
        if number[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is raise_interrupt:
            _wait(grace)
            while select.select([pressed], [], [], 0)[0]:  # one call of the handler may answer several signals
                os.read(pressed, 1)
            _raised.clear()


def _wait(grace: float) -> None:
    """Wait until KeyboardInterrupt has been raised, and end the process if that takes longer than `grace` seconds."""
    end = time.monotonic() + grace
    while not _raised.wait(_PAUSE):
        if time.monotonic() > end:
            os._exit(130)
        if _postponed.is_set():
            _press()


def _press() -> None:
    """Press Ctrl-C: a signal, which unlike `_thread.interrupt_main` ends a sleep, too."""
    signal.pthread_kill(cast(int, threading.main_thread().ident), signal.SIGINT)


def _is_import(frame: FrameType | None) -> bool:
    """Whether code runs because a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _raise_again(lost: Any) -> None:
    """Press Ctrl-C again where its KeyboardInterrupt was raised in a callback or destructor, which lose exceptions."""
    if issubclass(lost.exc_type, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is raise_interrupt:
        again = threading.Timer(_PAUSE, _press)  # not here, where it would be lost, too
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)
