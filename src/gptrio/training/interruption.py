"""Ctrl-C and SIGTERM during training: the update that has begun is finished and saved before the process ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from gptrio.errors import warn
from gptrio.utils.ctrl_c import raise_interrupt

_DEFAULTS = {
    signal.SIGINT: (signal.default_int_handler, raise_interrupt),
    signal.SIGTERM: (signal.SIG_DFL, raise_interrupt),
}


class Interruption:
    """Notes a signal while its block runs, in the main thread; handlers that a program has set itself are left alone.

    A second signal ends the process at once.

    Attributes:
        signal: the number of the signal that came; None if none has.
        agreed: that of the signal which every process of the run knows of, so that all end after the same update.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.agreed: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number, defaults in _DEFAULTS.items():
                if signal.getsignal(number) in defaults:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def end(self) -> None:
        """End the process if a signal came: with status 143 after SIGTERM, as Ctrl-C does (130) otherwise."""
        self._restore()
        number = self.signal if self.agreed is None else self.agreed
        if number == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        if number is not None:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            self.end()
        self.signal = number
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        warn(f"{name}: the update is finished and saved, then training ends; a second signal ends it at once")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
