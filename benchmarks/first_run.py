"""How long does a newcomer wait for text? The command line, with and without compiled code of the decoding step.

Each case runs `gptrio generate "def f():" -n 200 --greedy` with the packaged model in a process of its own: with an
empty cache folder (the step is compiled by a process of low priority meanwhile), with the code that this left, two at
once with an empty folder, with a folder that cannot be made, and waiting for the code (GPTRIO_COMPILE=wait).

    python benchmarks/first_run.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _results import print_table, save

COMMAND = (sys.executable, "-m", "gptrio", "generate", "def f():", "-n", "200", "--greedy")
MOST_SECONDS = 600.0  # for the step to be compiled


class Run:
    """One process of the command line, and when its text came."""

    def __init__(self, cache: str, mode: str = "background") -> None:
        """Start it with a cache folder."""
        environment = os.environ | {"XDG_CACHE_HOME": cache, "GPTRIO_COMPILE": mode}
        environment.pop("NUMBA_CACHE_DIR", None)
        self.begun = time.perf_counter()
        self.process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)

    def finish(self) -> dict[str, Any]:
        """Seconds to the first new text, to the last, and to the end of the process."""
        assert self.process.stdout is not None
        text, first, last = b"", 0.0, 0.0
        while piece := os.read(self.process.stdout.fileno(), 1 << 16):
            text, last = text + piece, time.perf_counter() - self.begun
            if not first and len(text) > len("def f():"):
                first = last
        status = self.process.wait()
        end = time.perf_counter() - self.begun
        return {"first": first, "last": last, "end": end, "status": status, "text": text.decode()}


def wait_for_code(cache: str) -> float:
    """Seconds until the code is there, whole."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < MOST_SECONDS:
        if any(Path(cache).rglob("ready")):
            return time.perf_counter() - begun
        time.sleep(0.2)
    return float("nan")


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as two,
        tempfile.TemporaryDirectory() as three,
    ):
        found["no code yet"] = Run(one).finish()
        found["seconds until it was compiled"] = wait_for_code(one)
        found["with the code"] = Run(one).finish()
        both = Run(two), Run(two)
        pool = ThreadPoolExecutor(2)
        found["first of two at once, no code yet"], found["second of two at once"] = pool.map(Run.finish, both)
        wait_for_code(two)
        found["a folder that cannot be made"] = Run("/dev/null/cache").finish()
        found["no code yet, waiting for it"] = Run(three, "wait").finish()
    rows = [
        [name, *(f"{run[part]:.2f} s" for part in ("first", "last", "end")), str(run["status"])]
        for name, run in found.items()
        if isinstance(run, dict)
    ]
    print_table(["", "first text", "last text", "end of the process", "exit status"], rows)
    texts = {run["text"] for run in found.values() if isinstance(run, dict)}
    seconds = found["seconds until it was compiled"]
    print(f"the code was compiled {seconds:.0f} s after the first process had ended; different texts: {len(texts)}")
    save("first_run", found, arguments.out)


if __name__ == "__main__":
    main()
