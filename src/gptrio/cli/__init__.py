"""The command line `gptrio`: one file per command, imported when it is called."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line in `sys.argv` and exit with its code.

    0 is success, also where the reader of a pipe has closed it; 1 is an error while running, or what `verify` found
    out of bounds, 2 an impossible command line, 130 an interruption from the keyboard, 143 one by SIGTERM.
    """
    try:
        from gptrio.utils.ctrl_c import end_stuck_process

        end_stuck_process()
        from gptrio.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done, and Python's own end would be killed by it
    sys.exit(code)
