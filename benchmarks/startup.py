"""How long does it take to import gptrio, and from it a model class, beside torch alone, transformers, other commits?

Each statement runs in fresh interpreters, the engines in turn, so that a slow moment of the machine meets all of
them. Times are seconds in the child from before the statement to after it: the interpreter's own start is not in them.
gptrio disables the garbage collector while it imports, so what it adds is measured over torch imported likewise.

    python benchmarks/startup.py --rounds 7 --peers gptrio@HEAD~1
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from _limits import NOT_MEASURED, is_possible
from _peers import recipe
from _results import print_table, save
from _runner import names

STATEMENTS = {
    "import gptrio": "import gptrio",
    "gptrio config": "from gptrio import GPT2Config",
    "gptrio tokenizer": "from gptrio import GPT2TokenizerFast",
    "import torch": "import torch",
    "import torch, no collector": "import gc; gc.disable(); import torch",
    "gptrio model": "from gptrio import GPT2LMHeadModel",
    "import transformers": "import transformers",
    "transformers model": "from transformers import GPT2LMHeadModel",
}
LIMITS = {"import gptrio": 0.1, "gptrio model over torch": 0.3}


def statements(peers: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """(whose package, statement) by name: everyone's, and gptrio's of other commits."""
    found = {name: ("gptrio", statement) for name, statement in STATEMENTS.items()}
    for peer in peers:
        ours = [name for name in STATEMENTS if name.startswith("gptrio") or name == "import gptrio"]
        found.update({name.replace("gptrio", peer): (peer, STATEMENTS[name]) for name in ours})
    return found


def seconds(peer: str, statement: str) -> float:
    """Seconds that a statement takes in a fresh interpreter."""
    code = f"import time\nstart = time.perf_counter()\n{statement}\nprint(time.perf_counter() - start)"
    variables = {**os.environ, **recipe(peer).variables}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables)
    return float(done.stdout.split()[-1])


def measure(rounds: int, peers: tuple[str, ...]) -> dict[str, list[float]]:
    """Times of every statement, one of each per round; the first round, which fills the file cache, does not count."""
    times: dict[str, list[float]] = {name: [] for name in statements(peers)}
    for number in range(rounds + 1):
        for name, (peer, statement) in statements(peers).items():
            taken = seconds(peer, statement)
            if number:
                times[name].append(taken)
    return times


def main() -> int:
    """Print the table and write the JSON file; the exit code is 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description="Import times of gptrio, torch and transformers.")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each statement")
    parser.add_argument("--peers", type=names, default=(), help="gptrio@COMMIT, ...")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()

    times = measure(arguments.rounds, arguments.peers)
    medians = {name: statistics.median(values) for name, values in times.items()}
    medians["gptrio model over torch"] = statistics.median(
        ours - bare for ours, bare in zip(times["gptrio model"], times["import torch, no collector"], strict=True)
    )
    missed = [name for name, limit in LIMITS.items() if not is_possible(medians[name]) or medians[name] > limit]
    print_table(
        ("statement", "median s", "limit s", "share of transformers model"),
        [
            (
                name,
                f"{value:.3f}" if is_possible(value) else NOT_MEASURED,
                f"{LIMITS[name]:.1f}" if name in LIMITS else "",
                f"{value / medians['transformers model']:.2f}" if is_possible(value) else "",
            )
            for name, value in medians.items()
        ],
    )
    save("startup", {"rounds": arguments.rounds, "times": times, "medians": medians, "limits": LIMITS}, arguments.out)
    for name in missed:
        print(f"not within its limit: {name}: {medians[name]:.3f} s, allowed {LIMITS[name]} s", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
