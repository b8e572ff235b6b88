"""A keyboard: messages of several lines, their history, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MOST_HISTORY = 1000  # lines


def read_message(ask: Callable[[str], str], user: str = "") -> str:
    """A message from a keyboard: the backslash at the end of a line says that it goes on.

    Args:
        ask: shows a prompt and returns a line, or the lines of a bracketed paste.
        user: name before the prompt.
    """
    lines = [ask(f"{user}> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(ask(". "))
    return "\n".join(lines)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed; pressed again, it raises KeyboardInterrupt."""
    pressed: list[int] = []

    def note(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def end_stuck_process(grace: float = 3.0) -> None:
    """From now on, let Ctrl-C end the process also while compiled code keeps Python from raising KeyboardInterrupt.

    Tokenizing a text of many megabytes, for one, takes a minute. A thread looks whether the main one has moved since
    Ctrl-C was pressed. Where a program handles Ctrl-C itself, and on Windows, nothing changes.

    Args:
        grace: seconds that the main thread has to move, before the process ends with 130.
    """
    if os.name == "nt":  # whose pipes can block
        return
    pressed, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    threading.Thread(target=_end_where_stuck, args=(pressed, grace), daemon=True).start()


def _end_where_stuck(pressed: int, grace: float) -> None:
    while number := os.read(pressed, 1):
        if number[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before = _place()
            time.sleep(grace)
            if _place() == before:
                os._exit(130)


def _place() -> tuple[object, int]:
    """Where the main thread is."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    return frame, frame.f_lasti


@contextmanager
def never() -> Iterator[Callable[[], bool]]:
    """Yield a function that is never true."""
    yield lambda: False


def history_file() -> Path:
    """File with the lines of earlier chats, in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptrio" / "chat_history"


@contextmanager
def history(file: Path) -> Iterator[None]:
    """Edit lines with their history, which a file keeps, where Python has readline; a paste of lines is one line."""
    try:
        import readline
    except ImportError:  # on Windows
        yield
        return
    readline.parse_and_bind("set enable-bracketed-paste on")
    readline.set_history_length(_MOST_HISTORY)
    with suppress(OSError):  # the first chat, or a home that cannot be read
        readline.read_history_file(file)
    try:
        yield
    finally:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
