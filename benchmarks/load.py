"""How long is it from loading a model to its first token, beside other engines?

Timed are the call that loads the model and the first token of a prompt of four; the library and the model's class are
imported before, which is shown apart. Every round starts fresh processes, in turn; the files are in the page cache, and
peers with a format of their own read a copy that was made before. vLLM, which takes a minute, is measured once.

    python benchmarks/load.py --model gpt2 --dtype float32
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from _checkpoints import checkpoint
from _results import print_table, save
from _runner import Outcome, absence, best_starts, entries_of, facts, options, ratio, settings

ONCE = ("vllm",)
PARTS = ("load", "first token", "import")


def load(peers: Iterable[str], folder: Path, dtype: str, threads: int, rounds: int) -> dict[str, Outcome]:
    """Seconds from the call that loads the model to the first token; a first round fills caches and does not count."""
    entries = entries_of(peers, folder, dtype)
    for number in range(rounds + 1):
        for entry in entries:
            if entry.start.missing or (entry.peer in ONCE and number):
                continue
            entry.begin(folder, threads)
            entry.end()
            if not number and entry.peer not in ONCE:
                entry.start.seconds.clear()
                entry.start.parts.clear()
    return best_starts(entries)


def main() -> None:
    """Print the table and write the JSON file."""
    arguments = options("Time from loading to the first token.").parse_args()
    folder = checkpoint(arguments.model)
    outcomes = load(arguments.peers, folder, arguments.dtype, arguments.threads, arguments.rounds)
    rows = []
    for peer, outcome in outcomes.items():
        if not outcome.seconds:
            rows.append([peer, outcome.dtype, absence(outcome.missing), *["" for _ in PARTS], ""])
            continue
        shares = [f"{statistics.median(part[name] for part in outcome.parts):.2f}" for name in PARTS]
        factor = ratio(outcomes, peer)
        rows.append([peer, outcome.dtype, f"{outcome.median:.2f} s", *shares, f"{factor:.2f}" if factor else ""])
    print(f"{arguments.model}, {arguments.dtype}, {arguments.threads} threads")
    print_table(["", "dtype", "load to first token", *PARTS, "gptrio is faster by"], rows)
    save("load", {"settings": settings(arguments), "outcomes": facts(outcomes)}, arguments.out)


if __name__ == "__main__":
    main()
