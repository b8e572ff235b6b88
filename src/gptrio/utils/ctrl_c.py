"""Ctrl-C and SIGTERM that end a process wherever it is: also in compiled code, or an import."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, cast

_raised = threading.Event()  # since the last signal
_postponed = threading.Event()  # until an import has ended
_PAUSE = 0.05  # seconds


def raise_interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, or SystemExit for SIGTERM, so that files are cleaned up; note that this was possible.

    Not during an import: the initialization of compiled modules loses exceptions (numpy's) or ends the process by them
    (torch's). The thread of `end_stuck_process` tries again soon.
    """
    if _is_import(frame):
        _postponed.set()
        return
    _postponed.clear()
    _raised.set()
    if number == signal.SIGTERM:
        raise SystemExit(_code(number))
    signal.default_int_handler(number, frame)


def end_stuck_process(grace: float = 3.0) -> None:
    """From now on, let Ctrl-C and SIGTERM end the process also while compiled code keeps Python from raising anything.

    Tokenizing a text of many megabytes, for one, takes a minute. A thread looks whether Python has raised it since
    the signal came. Where a program handles or ignores Ctrl-C itself, and on Windows, nothing changes.

    Args:
        grace: seconds in which an exception is to be raised, before the process ends with 130 (143 after SIGTERM).
    """
    if os.name == "nt" or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # there, pipes can block
        return
    signal.signal(signal.SIGINT, raise_interrupt)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, raise_interrupt)
    sys.unraisablehook = _raise_again
    pressed, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_end_where_stuck, args=(pressed, grace), daemon=True).start()


def _forget() -> None:
    """In a forked process: its signals are not the parent's, whose pipe it has inherited."""
    signal.set_wakeup_fd(-1)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is raise_interrupt:
            signal.signal(number, handler)


def _code(number: int) -> int:
    """The exit code of a process that a signal ends."""
    return 128 + number


def _end_where_stuck(pressed: int, grace: float) -> None:
    """End the process where Python does not call the handler soon after a signal that the pipe tells of."""
    while read := os.read(pressed, 1):
        number = read[0]
        if number in (signal.SIGINT, signal.SIGTERM) and signal.getsignal(number) is raise_interrupt:
            _wait(number, grace)
            while select.select([pressed], [], [], 0)[0]:  # one call of the handler may answer several signals
                os.read(pressed, 1)
            _raised.clear()


def _wait(number: int, grace: float) -> None:
    """Wait until an exception has been raised, and end the process if that takes longer than `grace` seconds."""
    end = time.monotonic() + grace
    while not _raised.wait(_PAUSE):
        if time.monotonic() > end:
            os._exit(_code(number))
        if _postponed.is_set():
            _send(number)


def _send(number: int) -> None:
    """Send a signal to the main thread, which unlike `_thread.interrupt_main` ends a sleep, too."""
    signal.pthread_kill(cast(int, threading.main_thread().ident), number)


def _is_import(frame: FrameType | None) -> bool:
    """Whether code runs because a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _raise_again(lost: Any) -> None:
    """Send a signal again whose exception was raised in a callback or destructor, which lose exceptions."""
    is_ours = issubclass(lost.exc_type, (KeyboardInterrupt, SystemExit))
    number = signal.SIGINT if issubclass(lost.exc_type, KeyboardInterrupt) else signal.SIGTERM
    if is_ours and signal.getsignal(number) is raise_interrupt:
        again = threading.Timer(_PAUSE, _send, (number,))  # not here, where it would be lost, too
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)
