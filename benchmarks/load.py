"""How long is it from starting Python to the first token, beside other engines?

Every round starts fresh processes, in turn; the files are in the page cache.

    python benchmarks/load.py --model gpt2 --dtype float32
"""

from __future__ import annotations

import time

from _checkpoints import checkpoint
from _peers import Contender, Missing, Outcome, facts, options
from _results import print_table, save

PARTS = ("start and load", "first token")


def first_token(peer: str, load: dict[str, object]) -> tuple[float, float]:
    """Seconds from starting the process until the model is loaded, and from there to the first token."""
    start = time.perf_counter()
    contender = Contender(peer)
    try:
        contender.ask("load", **load)
        loaded = time.perf_counter()
        contender.ask("generate", prompts=[[1, 2, 3, 4]], new=1)
        return loaded - start, time.perf_counter() - loaded
    finally:
        contender.close()


def main() -> None:
    """Print the table and write the JSON file."""
    arguments = options("Time to the first token.").parse_args()
    load = {"folder": str(checkpoint(arguments.model)), "dtype": arguments.dtype, "threads": arguments.threads}
    outcomes = {name: Outcome() for name in ("gptrio", *filter(None, arguments.peers.split(",")))}
    parts: dict[str, list[tuple[float, float]]] = {name: [] for name in outcomes}
    for number in range(arguments.rounds + 1):  # the first round fills caches and does not count
        for name, outcome in outcomes.items():
            if outcome.missing:
                continue
            try:
                times = first_token(name, load)
            except Missing as error:
                outcome.missing = str(error)
                continue
            if number:
                outcome.seconds.append(sum(times))
                parts[name].append(times)
    rows = []
    for name, outcome in outcomes.items():
        if outcome.missing:
            rows.append([name, "missing", outcome.missing[:60], ""])
            continue
        shares = [sorted(values)[len(values) // 2] for values in zip(*parts[name], strict=True)]
        ratio = "" if outcomes["gptrio"].missing else f"{outcome.median / outcomes['gptrio'].median:.2f}"
        rows.append([name, f"{outcome.median:.2f} s", " + ".join(f"{share:.2f}" for share in shares), ratio])
    print(f"{arguments.model}, {arguments.dtype}, {arguments.threads} threads")
    print_table(["", "to the first token", " + ".join(PARTS), "gptrio is faster by"], rows)
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    save("load", {"settings": settings, "outcomes": facts(outcomes), "parts": parts}, arguments.out)


if __name__ == "__main__":
    main()
