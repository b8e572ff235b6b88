"""What does `generate` cost where there is next to no arithmetic? Toy models of two layers of width 32 tell.

python benchmarks/overhead.py --rounds 7 --peers transformers,gptrio@HEAD~1
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _checkpoints import TOYS, checkpoint, prompts_for
from _results import print_table, save
from _runner import Comparison, Outcome, absence, agreement, facts, names, ratio, settings


def measure(toy: str, arguments: argparse.Namespace) -> dict[str, Outcome]:
    """What everyone takes for a call of `generate`, prompt included."""
    folder = checkpoint(toy)
    prompts = prompts_for(folder, arguments.batch, 8)
    with Comparison(arguments.peers, folder, "float32", arguments.threads) as comparison:
        return comparison.measure(lambda engine: engine.generate(prompts, arguments.new), arguments.rounds)


def rows_of(toy: str, outcomes: dict[str, Outcome], new: int) -> list[list[str]]:
    """Rows of the table: microseconds a token, and how many times faster gptrio is."""
    rows = []
    for peer, outcome in outcomes.items():
        if not outcome.seconds:
            rows.append([toy, peer, absence(outcome.missing), "", ""])
            continue
        same = agreement(outcome.tokens, outcomes["gptrio"].tokens)
        rows.append([toy, peer, f"{outcome.median / new * 1e6:.0f} µs", f"{ratio(outcomes, peer):.2f}", f"{same:.0%}"])
    return rows


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=200, help="tokens that are generated")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", type=names, default=("transformers",), help="transformers, or gptrio@COMMIT")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    outcomes = {toy: measure(toy, arguments) for toy in TOYS}
    print(f"generate, 2 layers of width 32, greedy, batch {arguments.batch}, per token")
    rows = [row for toy, found in outcomes.items() for row in rows_of(toy, found, arguments.new)]
    print_table(["", "", "median", "gptrio is faster by", "same tokens"], rows)
    found = {toy: facts(outcome) for toy, outcome in outcomes.items()}
    save("overhead", {"settings": settings(arguments), "outcomes": found}, arguments.out)


if __name__ == "__main__":
    main()
