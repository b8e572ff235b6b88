"""How long do BLiMP and LAMBADA take through the lm-evaluation-harness, and how much memory, beside its own class?

Requests have the lengths of the two sets, and random ids; the model has GPT-2's shape and random weights. Each way
runs each set in a process of its own; the harness' own class at several batch sizes over Transformers' model. Time is
that of the requests after two small calls. Memory is the peak from the loaded model on, these calls included, beyond
what the process takes with the model loaded.

    python benchmarks/scoring.py --passages 64 --pairs 250 --batch-sizes 8 16 32 64
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import gptrio
from _results import print_table, save
from gptrio.hub import local_folder

TOKENIZER = "gptrio/stdlib-gpt2"  # requests hold ids, so that it is only asked for special tokens
HEAD = (
    "requests and class",
    "seconds",
    "processor seconds",
    "peak MB over the model",
    "MB in all",
    "largest difference",
)
MEASURED = ("processor", "growth", "peak", "difference")  # besides seconds
SIZES = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
KINDS = ("LAMBADA", "BLiMP")
Request = tuple[tuple[str, str], list[int], list[int]]


def passages(count: int) -> list[Request]:
    """As LAMBADA's: 60 to 120 tokens of context, and a last word of 1 or 2."""
    lengths = [(random.randint(60, 120), random.choice((1, 1, 1, 2))) for _ in range(count)]
    return [(("", str(i)), tokens(context), tokens(word)) for i, (context, word) in enumerate(lengths)]


def pairs(count: int) -> list[Request]:
    """As BLiMP's: two sentences of 7 to 16 tokens that begin alike, after the end-of-text token."""
    found = []
    for i in range(count):
        length = random.randint(7, 16)
        shared = tokens(random.randint(1, length - 2))
        found += [((str(i), side), [50256], shared + tokens(length - len(shared))) for side in "ab"]
    return found


def tokens(count: int) -> list[int]:
    """Random ids."""
    return [random.randrange(50000) for _ in range(count)]


def own_way() -> Any:
    """gptrio's class over gptrio's model."""
    from gptrio.scoring.harness import GptrioLM

    return GptrioLM(own_model(), gptrio.AutoTokenizer.from_pretrained(TOKENIZER))


def harness_way(batch_size: int) -> Any:
    """The harness' own class over Transformers' model."""
    import transformers
    from lm_eval.models.huggingface import HFLM

    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES)).eval()
    model.load_state_dict(own_model().state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(local_folder(TOKENIZER))
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def own_model() -> Any:
    """GPT-2 with random weights, the same in every process."""
    torch.manual_seed(0)
    return gptrio.GPT2LMHeadModel(gptrio.GPT2Config(**SIZES))


def memory(field: str) -> float:
    """Megabytes of this process by a line of Linux's status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of one way with one set, in this process."""
    torch.set_num_threads(arguments.threads)
    random.seed(0)
    lm = own_way() if arguments.way == 0 else harness_way(arguments.way)
    requests = passages(arguments.passages) if arguments.kind == "LAMBADA" else pairs(arguments.pairs)
    model = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    for _ in range(2):
        lm._loglikelihood_tokens(requests[:8], disable_tqdm=True)
    seconds, processor = [], time.process_time()
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        answers = lm._loglikelihood_tokens(requests, disable_tqdm=True)
        seconds.append(time.perf_counter() - start)
    processor, peak = (time.process_time() - processor) / arguments.rounds, memory("VmHWM")
    found = {"seconds": seconds, "processor": processor, "growth": peak - model, "peak": peak}
    return {**found, "values": [value for value, _ in answers]}


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description="Scoring speed and memory.")
    parser.add_argument("--passages", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=250)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[8, 16, 32, 64], help="of the harness' own class")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="folder of the JSON file")
    parser.add_argument("--way", type=int, help=argparse.SUPPRESS)  # a batch size, or 0 for gptrio; prints JSON
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)  # of requests
    arguments = parser.parse_args()
    if arguments.way is not None:
        print(json.dumps(measure(arguments)))
        return
    found: dict[str, dict[str, Any]] = {}
    rows = []
    for kind in KINDS:
        for way in (0, *arguments.batch_sizes):
            command = [sys.executable, *sys.argv, "--way", str(way), "--kind", kind]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            name = "gptrio" if way == 0 else f"harness, batch {way}"
            one = found.setdefault(kind, {})[name] = json.loads(done.stdout.splitlines()[-1])
            expected = found[kind]["gptrio"]["values"]
            one["difference"] = max(abs(a - b) for a, b in zip(one["values"], expected, strict=True))
            figures = (statistics.median(one["seconds"]), *(one[name] for name in MEASURED))
            shown = (f"{figure:.{digits}f}" for figure, digits in zip(figures, (2, 2, 0, 0, 6), strict=True))
            rows.append((f"{kind}, {name}", *shown))
    print_table(HEAD, rows)
    settings = {name: str(value) for name, value in vars(arguments).items()}
    save("scoring", {"settings": settings, "found": found}, arguments.out)


if __name__ == "__main__":
    main()
