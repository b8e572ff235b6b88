"""Measuring engines in turn, and what came of it."""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _checkpoints import SHAPES
from _limits import NOT_MEASURED, Limit, is_possible, share_of
from _peers import PEERS, Engine, Missing, convert, variants
from gptrio import AutoConfig

SKIP_RATIO = 1.5  # of two 16 bit types of an engine, the one that is so much slower in a first round is dropped
ATTEMPTS = 3  # at a figure that can be
PAUSE = 0.3  # seconds between turns, in which the threads of the last one stop waiting for more

Run = Callable[[Engine], tuple[float, list[list[int]]]]


@dataclass
class Outcome:
    """What an engine did.

    Attributes:
        dtype: it did it in.
        seconds: one number a round.
        tokens: what it generated in the last round.
        megabytes: most memory that its process held so far.
        missing: why it could not run, or "".
        parts: seconds of each part of loading, one dictionary a round.
    """

    dtype: str = ""
    seconds: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    megabytes: int = 0
    missing: str = ""
    parts: list[dict[str, float]] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.seconds)


@dataclass
class Entry:
    """An engine in one dtype: how it started, its process, and what it does in the measurement at hand."""

    peer: str
    start: Outcome
    engine: Engine | None = None
    outcome: Outcome = field(default_factory=Outcome)

    def begin(self, folder: Path, threads: int) -> None:
        """Start a fresh process, load the model, generate one token; a reason why not is kept."""
        try:
            convert(self.peer, folder, self.start.dtype)
            self.engine = Engine(self.peer, threads)
            parts = self.engine.first_token(folder, self.start.dtype)
        except Missing as error:
            self.end(str(error))
            return
        self.start.parts.append(parts)
        self.start.seconds.append(parts["load"] + parts["first token"])

    def end(self, missing: str = "") -> None:
        """End the process, if there is one; with a reason, it does not come back."""
        self.start.missing = self.outcome.missing = missing or self.start.missing
        if self.engine:
            self.engine.close()
            self.engine = None

    def run(self, run: Run) -> None:
        """Take a turn; who fails is out of the comparison, and a figure that cannot be is measured anew."""
        if self.engine is None:
            return
        for _ in range(ATTEMPTS):
            time.sleep(PAUSE)
            try:
                seconds, self.outcome.tokens = run(self.engine)
            except Missing as error:
                self.end(str(error))
                return
            if is_possible(seconds):
                self.outcome.seconds.append(seconds)
                self.outcome.missing = ""
                return
        if not self.outcome.seconds:
            self.outcome.missing = NOT_MEASURED


def entries_of(peers: Iterable[str], folder: Path, dtype: str) -> list[Entry]:
    """gptrio and its peers in each dtype that they offer of those meant, none of them started."""
    family, found = AutoConfig.from_pretrained(folder).model_type, []
    for peer in ("gptrio", *peers):
        try:
            found += [Entry(peer, Outcome(name)) for name in variants(peer, family, dtype)]
        except Missing as error:
            found.append(Entry(peer, Outcome(missing=str(error))))
    return found


class Comparison:
    """gptrio and its peers, each with the model of a folder loaded once, for any number of measurements."""

    def __init__(self, peers: Iterable[str], folder: Path, dtype: str, threads: int, budget: float = math.inf) -> None:
        """Start everyone: fresh processes, import, load, first token."""
        self.budget = budget
        self.entries = entries_of(peers, folder, dtype)
        for entry in self.entries:
            if not entry.start.missing:
                entry.begin(folder, threads)

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *error: object) -> None:
        for entry in self.entries:
            entry.end()

    def measure(self, run: Run, rounds: int) -> dict[str, Outcome]:
        """Let all run in turn, round after round; a first round that does not count warms each up.

        After two rounds, no other one begins when `budget` seconds are over.

        Returns:
            For each engine what it did, in the faster of its dtypes.
        """
        for entry in self.entries:
            entry.outcome = Outcome(entry.start.dtype, missing=entry.start.missing)
            entry.run(run)
        running = without_slow_dtypes(self.entries, 2 * SKIP_RATIO)
        for entry in running:
            entry.outcome.seconds.clear()
        begun = time.monotonic()
        for number in range(rounds):
            if number >= 2 and time.monotonic() - begun > self.budget:
                break
            for entry in running:
                entry.run(run)
            running = without_slow_dtypes(running)
        for entry in running:
            if entry.engine:
                entry.outcome.megabytes = entry.engine.ask("memory")["megabytes"]
        return best(running)

    def starts(self) -> dict[str, Outcome]:
        """How long each took from loading to its first token, measured once, in the faster of its dtypes."""
        return best_starts(self.entries)


def without_slow_dtypes(entries: Sequence[Entry], margin: float = SKIP_RATIO) -> list[Entry]:
    """The entries without those that are `margin` times slower than another one of the same engine."""
    fastest = best(entries)

    def lags(entry: Entry) -> bool:
        leader = fastest[entry.peer]
        ahead = leader is not entry.outcome and bool(leader.seconds and entry.outcome.seconds)
        return ahead and entry.outcome.median > margin * leader.median

    return [entry for entry in entries if not lags(entry)]


def best(entries: Iterable[Entry]) -> dict[str, Outcome]:
    """For each engine the outcome of its fastest entry, or why it has none."""
    found: dict[str, Outcome] = {}
    for entry in entries:
        known, new = found.get(entry.peer), entry.outcome
        if known is None or (new.seconds and (not known.seconds or new.median < known.median)):
            found[entry.peer] = new
    return found


def best_starts(entries: Iterable[Entry]) -> dict[str, Outcome]:
    """For each engine the faster start among its entries."""
    return best([Entry(entry.peer, entry.start, outcome=entry.start) for entry in entries])


def agreement(tokens: Sequence[Sequence[int]], ours: Sequence[Sequence[int]]) -> float:
    """Share of our tokens that come before the first difference in their row."""
    equal = 0
    for row, other in zip(tokens, ours, strict=True):
        differing = [place for place, (a, b) in enumerate(zip(row, other, strict=True)) if a != b]
        equal += differing[0] if differing else len(row)
    return equal / sum(map(len, ours))


def ratio(outcomes: dict[str, Outcome], peer: str) -> float | None:
    """How many times faster gptrio is than a peer."""
    if not outcomes["gptrio"].seconds or not outcomes[peer].seconds:
        return None
    return outcomes[peer].median / outcomes["gptrio"].median


HEAD = ["", "dtype", "median", "gptrio is faster by", "share of the limit", "same tokens", "peak memory"]


def report(outcomes: dict[str, Outcome], limit: Limit, unit: float, name: str) -> list[list[str]]:
    """Rows of a table: dtype, median, ratio to gptrio, share of the limit, tokens that are gptrio's, and memory.

    Args:
        outcomes: of a measurement.
        limit: least time that the machine allows.
        unit: seconds of the unit shown.
        name: of the unit.
    """
    rows = []
    for peer, outcome in outcomes.items():
        if not outcome.seconds:
            rows.append([peer, outcome.dtype, absence(outcome.missing), "", "", "", ""])
            continue
        factor = ratio(outcomes, peer)
        same = agreement(outcome.tokens, outcomes["gptrio"].tokens) if factor else 0.0
        shown = [f"{factor:.2f}" if factor else "", share_of(limit, outcome.median), f"{same:.0%}"]
        rows.append([peer, outcome.dtype, f"{outcome.median / unit:.2f} {name}", *shown, f"{outcome.megabytes} MB"])
    return rows


def absence(reason: str) -> str:
    """Why there is no number, in a line."""
    return reason if reason.startswith(("not offered", NOT_MEASURED)) else f"missing: {reason}"


def facts(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Outcomes for a JSON file: with the share of tokens that are gptrio's, without the tokens."""
    found = {}
    for name, outcome in outcomes.items():
        kept = asdict(outcome)
        tokens = kept.pop("tokens")
        if tokens and outcomes["gptrio"].tokens:
            kept["agreement"] = agreement(tokens, outcomes["gptrio"].tokens)
        found[name] = kept
    return found


def options(description: str) -> argparse.ArgumentParser:
    """The command line that these benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2", help=f"{', '.join(SHAPES)}, or a folder")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, float16, 16bit (the better), int8, int4")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", type=names, default=PEERS, help=f"of {','.join(PEERS)}; all by default")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser


def names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The command line for a JSON file."""
    return {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)}
