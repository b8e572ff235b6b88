"""The command line `gptrio`: one file per command, imported when it is called."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line in `sys.argv` and exit with its code.

    0 is success, 1 an error while running, 2 an impossible command line, 130 an interruption from the keyboard.
    """
    from gptrio.cli.app import run

    sys.exit(run(sys.argv[1:]))
