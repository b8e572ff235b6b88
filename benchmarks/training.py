"""How many tokens does a step of fine-tuning take in a second, and how much memory, beside Transformers?

Each way trains a model of random weights in a process of its own; all wait for each other, and take their steps in
turns, so that what else the machine does slows all of them. Seconds are from a step's first forward to its update,
of the fastest step; memory is the peak. Of short texts, rows of Transformers are padded to the longest of 32, gptrio's
are packed, and only tokens that are learned count. One more step of gptrio is profiled: what its time went to.

    python benchmarks/training.py
    python benchmarks/training.py --cells gpt2-float32 gpt_neo-bfloat16 --steps 4
    python benchmarks/training.py --cells short --messages spam.tsv --tokenizer FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from _limits import Weights
from _results import print_table, save
from _training import SHAPES, batches, collate, learned_tokens, work
from gptrio.kernels.widened import has_no_instructions
from machine import rate

TRAINERS = ("transformers.Trainer", "gptrio.Trainer")
LOOPS = ("transformers loop", "gptrio loop")
HEAD = ("way", "tokens a second", "times the first", "median seconds", "peak MB", "of the first", "products alone")
THREE_PASSES, WITHOUT_WEIGHTS = 6, 4  # operations a weight and token: forward, gradients of inputs and of weights


class Cell(NamedTuple):
    """What is trained, and by which ways; the first is the one that the others are compared with."""

    family: str
    dtype: str = "float32"
    texts: str = "long"
    lora: int = 0
    ways: tuple[str, ...] = TRAINERS
    steps: int = 2
    rows: int = 4
    length: int = 512


CELLS = {
    "gpt2-float32": Cell("gpt2"),
    "gpt_neo-float32": Cell("gpt_neo"),
    "gpt2-bfloat16": Cell("gpt2", "bfloat16", ways=TRAINERS[1:]),
    "gpt_neo-bfloat16": Cell("gpt_neo", "bfloat16", ways=TRAINERS[1:]),
    "gpt2-bfloat16-few": Cell("gpt2", "bfloat16", steps=1, rows=1, length=64),
    "gpt_neo-bfloat16-few": Cell("gpt_neo", "bfloat16", steps=1, rows=1, length=64),
    "lora": Cell("gpt2", lora=8),
    "short": Cell("gpt2", texts="short"),
    "overhead": Cell("toy", ways=("gptrio loop", "gptrio.Trainer", *TRAINERS[:1], *LOOPS[:1]), steps=60),
}
# where bfloat16 is emulated, 64 tokens take Transformers half a minute, so that its longer steps are left out
OTHERS = {"gpt_neox-float32": Cell("gpt_neox"), "gpt_neox-bfloat16": Cell("gpt_neox", "bfloat16")}


def turns_of(arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """What each way took for its steps, one step of each way after another; then the profiled steps."""
    processes = {}
    for way in arguments.ways:
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TRANSFORMERS_VERBOSITY": "error"}
        settings = {**vars(arguments), "way": way, "profiled": arguments.steps if way.startswith("gptrio") else None}
        given = json.dumps({**settings, "steps": arguments.steps + (settings["profiled"] is not None)}, default=str)
        processes[way] = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--worker", given],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in processes}
    for step in range(arguments.steps + 1):
        for way, process in processes.items():
            if step == arguments.steps and not way.startswith("gptrio"):
                continue
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            line = next(line for line in process.stdout if line.startswith("{"))
            found[way].append(json.loads(line))
    for process in processes.values():
        process.communicate()
    return found


def products_alone(arguments: argparse.Namespace, tokens: int, rate: float) -> float:
    """Seconds of the products of a step's linear layers at the rate of the machine; attention is not counted."""
    shape = SHAPES[arguments.family]
    width = shape.get("n_embd", shape.get("hidden_size"))
    layers = shape.get("n_layer", shape.get("num_layers", shape.get("num_hidden_layers")))
    weights = Weights(12 * layers * width**2, shape["vocab_size"] * width)
    return tokens * sum(weights) * (WITHOUT_WEIGHTS if arguments.lora else THREE_PASSES) / rate / 1e9


def report(arguments: argparse.Namespace, found: dict[str, list[dict[str, Any]]], rate: float) -> dict[str, Any]:
    """Print the table of a cell, and return its figures."""
    rows, figures = [], dict[str, Any]()
    for way, steps in found.items():
        arguments.way = way
        examples, size = batches(arguments)
        parts = [collate(examples[i * size : (i + 1) * size]) for i in range(arguments.steps)]
        tokens, seconds = [learned_tokens(part) for part in parts], [step[arguments.clock] for step in steps]
        seconds = seconds[: arguments.steps]
        speeds = [count / second for count, second in zip(tokens, seconds, strict=True)]
        limit = products_alone(arguments, parts[0]["input_ids"].numel(), rate)
        peak = max(step["peak"] for step in steps[: arguments.steps])
        own = {"tokens a second": max(speeds), "median": statistics.median(seconds), "peak": peak}
        figures[way] = {**own, "products alone": limit, "shares": steps[-1].get("shares"), "steps": steps}
        first = next(iter(figures.values()))
        times, share = own["tokens a second"] / first["tokens a second"], peak / first["peak"]
        shown = f"{own['tokens a second']:.0f}", f"{times:.2f}", f"{own['median']:.3f}", f"{peak:.0f}"
        rows.append((way, *shown, f"{share:.2f}", f"{limit / min(seconds):.0%}"))
    print_table(HEAD, rows)
    for way, figure in figures.items():
        if figure["shares"]:
            print(f"{way}: " + ", ".join(f"{name} {share:.0%}" for name, share in figure["shares"].items()))
    return figures


def main() -> None:
    """Print a table for each cell, and write the JSON file."""
    parser = argparse.ArgumentParser(description="Speed and memory of fine-tuning.")
    parser.add_argument("--cells", nargs="*", default=tuple(CELLS), choices=(*CELLS, *OTHERS), metavar="CELL")
    parser.add_argument("--ways", nargs="*", choices=(*TRAINERS, *LOOPS), metavar="WAY", help="instead of a cell's own")
    parser.add_argument("--dropout", type=float, help="of GPT-2, instead of 0.1")
    parser.add_argument("--rows", type=int, help="of a batch, instead of a cell's own")
    parser.add_argument("--length", type=int, help="of a row, instead of a cell's own")
    parser.add_argument("--steps", type=int, help="of each way, instead of a cell's own")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="processor: on a busy machine")
    parser.add_argument("--messages", type=Path, help="file with a text after the last tab of each line")
    parser.add_argument("--tokenizer", type=Path, help="folder of GPT-2's tokenizer, for --messages")
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)  # settings of a process that trains
    given = parser.parse_args()
    if given.worker is not None:
        settings = argparse.Namespace(**given.worker)
        settings.messages = None if settings.messages is None else Path(settings.messages)
        work(settings)
        return
    torch.set_num_threads(given.threads)
    dtypes = ("float32",) if has_no_instructions(torch.bfloat16) else ("float32", "bfloat16")
    rates, results = {name: rate(name) for name in dtypes}, {}
    print("products of this machine, GFLOP/s:", *(f"{name} {value:.0f}" for name, value in rates.items()), flush=True)
    for name in given.cells:
        asked = {
            key: value for key in ("ways", "steps", "rows", "length") if (value := getattr(given, key)) is not None
        }
        cell = {**CELLS, **OTHERS}[name]._replace(**asked)
        print(f"\n{name}: {cell}", flush=True)
        arguments = argparse.Namespace(**{**vars(given), **cell._asdict()})
        results[name] = report(arguments, turns_of(arguments), rates.get(cell.dtype, rates["float32"]))
    settings = {name: str(value) for name, value in vars(given).items()}
    save("training", {"settings": settings, "rates": rates, "cells": results}, given.out)


if __name__ == "__main__":
    main()
