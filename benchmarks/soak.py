"""Does a long generation on the command line always end well? Ten command lines, each in so many processes.

A process that ends by a signal, with an error, or with another text than the first one of its line is a failure.

    python benchmarks/soak.py --runs 100
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

LINES: tuple[tuple[str, ...], ...] = (
    ("import os", "-n", "400", "--greedy"),
    ("import os", "-n", "300", "--seed", "1"),
    ("def main(arguments):", "-n", "300", "--greedy", "--dtype", "float32"),
    ("class Reader:\n    def", "-n", "480", "--seed", "2", "--top-k", "0", "--top-p", "0.9"),
    ("for name in", "-n", "500", "--seed", "3", "--temperature", "1.3"),
    ("import sys\nimport re\n", "-n", "300", "--greedy", "--quantize", "int8"),
    ("return self", "-n", "400", "--seed", "4", "--quantize", "int4"),
    ("try:\n    import", "-n", "300", "--seed", "5", "--num-return-sequences", "5"),
    ("with open(path) as file:", "-n", "450", "--greedy", "--stop", "no such text"),
    ("raise ValueError(", "-n", "300", "--seed", "6", "--json", "--num-return-sequences", "2"),
)


def run(line: tuple[str, ...]) -> tuple[int, bytes, str]:
    """Exit status, text and errors of one process."""
    command = [sys.executable, "-m", "gptrio", "generate", *line]
    environment = os.environ | {"GPTRIO_COMPILE": "wait"}  # all processes decode in one way
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=environment)
    return done.returncode, done.stdout, done.stderr.decode(errors="replace")


def main() -> None:
    """Run all lines in turn, and say how each process that failed did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="processes of each command line")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="when to stop before that")
    arguments = parser.parse_args()
    begun, counts, failures = time.monotonic(), [0] * len(LINES), 0
    first: dict[int, bytes] = {}
    for turn in range(arguments.runs):
        for number, line in enumerate(LINES):
            if time.monotonic() - begun > arguments.seconds:
                break
            status, text, errors = run(line)
            counts[number] += 1
            expected = first.setdefault(number, text)
            if status or text != expected or not text:
                failures += 1
                last = (errors.strip().splitlines() or ["no message"])[-1]
                what = f"exit status {status}: {last}" if status else "another text than at first"
                print(f"run {turn} of {' '.join(line)!r}: {what}", flush=True)
        if turn % 10 == 9:
            print(f"{sum(counts)} processes, {failures} failures", flush=True)
    print(f"{counts} processes of the ten lines, {failures} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
