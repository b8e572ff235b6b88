"""The program in a pseudo-terminal."""

from __future__ import annotations

import os
import re
import select
import struct
import subprocess
import sys
import time


def own_environment() -> dict[str, str]:
    """For a process that has its cache in this folder and compiles nothing into it."""
    return {**os.environ, "XDG_CACHE_HOME": os.path.abspath("cache"), "GPTRIO_COMPILE": "never"}


AT_ONCE = "import gptrio.cli.progress as p; p._SHORT = 0.0; import gptrio.cli; gptrio.cli.main()"


class Screen:
    """The program in a pseudo-terminal.

    Args:
        arguments: of the program; its progress bars do not wait until work has taken long.
        variables: of its environment.
    """

    def __init__(self, *arguments: str, **variables: str) -> None:
        import fcntl
        import pty
        import termios

        self._leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # lines, columns
        environment = {**own_environment(), "TERM": "xterm", **variables}
        self._process = subprocess.Popen(
            [sys.executable, "-c", AT_ONCE, *arguments],
            stdin=follower, stdout=follower, stderr=follower, env=environment, start_new_session=True,
            preexec_fn=take_terminal,
        )  # fmt: skip
        os.close(follower)
        self.shown = ""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._leader, text.encode())

    def wait_for(self, pattern: str) -> str:
        """Read until a pattern has appeared; returns what was shown up to its end, which later calls do not see."""
        limit = time.monotonic() + 120
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < limit and select.select([self._leader], [], [], 30)[0], self.shown
            try:
                self.shown += os.read(self._leader, 1 << 16).decode(errors="replace")
            except OSError as error:  # Linux's end of a pseudo-terminal
                raise AssertionError(f"the program ended after {self.shown!r}") from error
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def press(self, key: str) -> None:
        """Press a key that is no text; readline shows its prompt a moment before it waits for keys."""
        time.sleep(0.3)
        self.type(key)

    def end(self) -> int:
        """Wait for the end of the program and return its exit code; one that goes on is killed."""
        try:
            while select.select([self._leader], [], [], 30)[0] and os.read(self._leader, 1 << 16):
                pass
        except OSError:  # Linux's end of a pseudo-terminal
            return self._process.wait(60)
        finally:
            os.close(self._leader)
        self._process.kill()
        return self._process.wait(60)


def take_terminal() -> None:
    """Make standard input the terminal of this process, so that its Ctrl-C reaches it."""
    import fcntl
    import signal
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
