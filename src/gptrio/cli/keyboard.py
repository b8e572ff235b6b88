"""A keyboard: messages of several lines, their history, and Ctrl-C that ends an answer."""

from __future__ import annotations

import os
import signal
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
