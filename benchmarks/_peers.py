"""Contenders in processes and environments of their own, and measuring them in turn."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _checkpoints import cache_folder

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "transformers": ["torch==2.13.0", "transformers==4.56.2", "numpy"],
    "ctranslate2": ["ctranslate2", "torch==2.13.0", "transformers==4.56.2", "numpy", "setuptools"],
}


class Missing(Exception):
    """A peer cannot be had on this machine."""


class Contender:
    """A worker process that answers requests."""

    def __init__(self, peer: str) -> None:
        """Prepare the peer's environment, if it is not there yet, and start its worker."""
        environment = os.environ | {"PYTHONPATH": os.fspath(ROOT / "src")}
        self.name = peer
        self._log = (cache_folder() / f"{peer}.log").open("w")
        self._process = subprocess.Popen(
            [_python(peer), os.fspath(Path(__file__).with_name("_worker.py")), peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
        )

    def ask(self, call: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; raises Missing if it fails."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"call": call, **arguments}) + "\n")
            self._process.stdin.flush()
            reply: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"error": "the worker died"}')
        except BrokenPipeError:
            reply = {"error": "the worker died"}
        if "error" in reply:
            raise Missing(f"{reply['error']} (see {self._log.name})")
        return reply

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


def _python(peer: str) -> str:
    """The interpreter of a peer's environment."""
    if peer == "gptrio" or (peer == "transformers" and _has(sys.executable, "transformers")):
        return sys.executable
    if peer not in PACKAGES:
        raise Missing(f"there is no recipe for {peer}; known are {', '.join(PACKAGES)}")
    folder = cache_folder() / "environments" / peer
    python = os.fspath(folder / "bin" / "python")
    if not (folder / "ready").exists():
        print(f"preparing {peer} in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        done = subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[peer]], capture_output=True)
        if done.returncode:
            raise Missing(f"cannot be installed: {done.stderr.decode().strip().splitlines()[-1]}")
        (folder / "ready").touch()
    return python


def _has(python: str, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0


@dataclass
class Outcome:
    """What a contender did.

    Attributes:
        seconds: one number a round.
        tokens: what it generated in the last round.
        megabytes: most memory that its process held.
        missing: why it could not run, or "".
    """

    seconds: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    megabytes: int = 0
    missing: str = ""

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.seconds)


def options(description: str) -> argparse.ArgumentParser:
    """The command line that all these benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="gpt2", help="gpt2, gpt-neo-125m, pythia-160m, or a folder")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, float16, int8 or int4")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default="transformers", help="comma-separated: transformers, ctranslate2")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser


def race(
    peers: Sequence[str], load: dict[str, Any], run: Callable[[Contender], tuple[float, list[list[int]]]], rounds: int
) -> dict[str, Outcome]:
    """Let gptrio and its peers run in turn, round after round; a first round that does not count warms each up."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    outcomes = {name: Outcome() for name in ("gptrio", *peers)}
    running: dict[str, Contender] = {}
    for name, outcome in outcomes.items():
        try:
            running[name] = Contender(name)
            running[name].ask("load", **load)
            run(running[name])
        except Missing as error:
            outcome.missing = str(error)
            if name in running:
                running.pop(name).close()
    for _ in range(rounds):
        for name, contender in running.items():
            seconds, outcomes[name].tokens = run(contender)
            outcomes[name].seconds.append(seconds)
    for name, contender in running.items():
        outcomes[name].megabytes = contender.ask("memory")["megabytes"]
        contender.close()
    return outcomes


def report(outcomes: dict[str, Outcome], limit: float, unit: float, name: str) -> list[list[str]]:
    """Rows of a table: median, ratio to gptrio, share of the limit, whether the tokens are gptrio's, and memory.

    Args:
        outcomes: of `race`.
        limit: least seconds that the machine allows.
        unit: seconds of the unit shown.
        name: of the unit.
    """
    ours, rows = outcomes["gptrio"], []
    for peer, outcome in outcomes.items():
        if outcome.missing:
            rows.append([peer, "missing", outcome.missing[:60], "", "", ""])
            continue
        ratio = "" if ours.missing else f"{outcome.median / ours.median:.2f}"
        agree = "yes" if outcome.tokens == ours.tokens else "no"
        share, memory = f"{limit / outcome.median:.0%}", f"{outcome.megabytes} MB"
        rows.append([peer, f"{outcome.median / unit:.2f} {name}", ratio, share, agree, memory])
    return rows


HEAD = ["", "median", "gptrio is faster by", "share of the limit", "same tokens", "peak memory"]


def facts(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Outcomes for the JSON file."""
    return {
        name: {"seconds": outcome.seconds, "megabytes": outcome.megabytes, "missing": outcome.missing}
        for name, outcome in outcomes.items()
    }
