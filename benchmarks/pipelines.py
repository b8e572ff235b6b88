"""How long do pipelines take over many texts, beside Transformers' at its own best batch size?

python benchmarks/pipelines.py --task text-generation --count 64 --words 30 --new 32
python benchmarks/pipelines.py --task text-classification --count 1000 --texts sms_spam.tsv --tokenizer FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import gptrio
from _checkpoints import SHAPES, cache_folder
from _results import print_table, save
from _runner import settings
from gptrio.tokenization.bpe import byte_alphabet

Run = Callable[[], list[Any]]
TASKS = {"text-generation": "AutoModelForCausalLM", "text-classification": "AutoModelForSequenceClassification"}
WORDS = """the to you a i and is in u it of my for your me on have that are call not do ok now go come free txt win"""


def model_folder(shape: str, task: str, tokenizer: Path | None) -> Path:
    """A model of a published shape with random weights, made on first use, and a tokenizer beside it."""
    folder = cache_folder() / "pipelines" / shape / task
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = getattr(gptrio, SHAPES[shape][0])(**SHAPES[shape][2])
        config.pad_token_id = config.eos_token_id
        getattr(gptrio, TASKS[task]).from_config(config).save_pretrained(folder)
    given = gptrio.GPT2TokenizerFast.from_pretrained(tokenizer) if tokenizer else numbered_bytes(folder)
    given.model_max_length = gptrio.AutoConfig.from_pretrained(folder).max_position_embeddings
    given.save_pretrained(folder)
    return folder


def numbered_bytes(folder: Path) -> gptrio.GPT2TokenizerFast:
    """A tokenizer of bytes, with a name for every other id of the model."""
    size = gptrio.AutoConfig.from_pretrained(folder).vocab_size
    tokens = [*byte_alphabet().values(), *(f"t{number}" for number in range(256, size - 1)), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return gptrio.GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))


def texts_of(path: Path | None, count: int, words: int) -> list[str]:
    """So many lines of a file, labels before a tab left out; or texts of so many words on average."""
    numbers = random.Random(0)
    if path is None:
        lengths = (min(1 + int(numbers.expovariate(1 / words)), 5 * words) for _ in range(count))
        return [" ".join(numbers.choices(WORDS.split(), k=length)) for length in lengths]
    lines = [line.split("\t")[-1] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return numbers.sample(lines, count)


def runs_of(task: str, folder: Path, texts: list[str], new: int, batch_sizes: list[int]) -> dict[str, Run]:
    """The runs to compare: ours as it comes, and Transformers' with each batch size."""
    of_call: dict[str, Any] = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new}
    of_call = of_call if task == "text-generation" else {"truncation": True}
    ours = gptrio.pipeline(task, folder, device="cpu")
    theirs = transformers.pipeline(task, str(folder), device="cpu")
    theirs.tokenizer.pad_token_id = theirs.model.config.eos_token_id
    theirs.tokenizer.padding_side = "left" if task == "text-generation" else "right"
    runs: dict[str, Run] = {"gptrio": lambda: ours(texts, **of_call)}
    for size in batch_sizes:
        runs[f"transformers, batch_size={size}"] = lambda size=size: theirs(texts, batch_size=size, **of_call)
    return runs


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(run: Run, clock: str) -> tuple[float, list[Any]]:
    """Seconds, and the results."""
    start = CLOCKS[clock]()
    results = run()
    return CLOCKS[clock]() - start, results


def agreement(ours: list[Any], theirs: list[Any]) -> float:
    """Share of texts with the same continuation or label."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.mean(
        one[0] == other[0] if isinstance(one, list) else one["label"] == other["label"] for one, other in pairs
    )


def compare(runs: dict[str, Run], rounds: int, clock: str) -> tuple[dict[str, list[float]], float]:
    """Seconds of ours and of the fastest other run, in turn, and how far their results agree."""
    names = list(runs)
    first = {name: timed(runs[name], clock)[0] for name in names}
    best = min(names[1:], key=lambda name: first[name])
    seconds: dict[str, list[float]] = {"gptrio": [], best: []}
    results: dict[str, list[Any]] = {}
    for _ in range(rounds):
        for name, found in seconds.items():
            took, results[name] = timed(runs[name], clock)
            found.append(took)
    slower = {name: [took] for name, took in first.items() if name not in seconds}
    return {**seconds, **slower}, agreement(results["gptrio"], results[best])


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="text-generation")
    parser.add_argument("--model", choices=list(SHAPES), default="gpt2")
    parser.add_argument("--count", type=int, default=64, help="texts")
    parser.add_argument("--texts", type=Path, help="file with a text in each line; made up by default")
    parser.add_argument("--words", type=int, default=30, help="average length of texts that are made up")
    parser.add_argument("--tokenizer", type=Path, help="folder; a tokenizer of bytes by default")
    parser.add_argument("--new", type=int, default=32, help="new tokens of each text")
    parser.add_argument("--batch-sizes", default="1,8,16,32,64", help="of Transformers; the fastest is compared")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu where others work, with one thread")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    folder = model_folder(arguments.model, arguments.task, arguments.tokenizer)
    texts = texts_of(arguments.texts, arguments.count, arguments.words)
    sizes = [int(size) for size in arguments.batch_sizes.split(",")]
    runs = runs_of(arguments.task, folder, texts, arguments.new, sizes)
    seconds, same = compare(runs, arguments.rounds, arguments.clock)
    ours = statistics.median(seconds["gptrio"])
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    print(f"{arguments.task}, {arguments.model}, {len(texts)} texts, float32")
    print(f"{arguments.threads} threads, {arguments.clock} time; {same:.0%} of the results are the same")
    rows = [[name, f"{took:.2f} s", f"{len(texts) / took:.1f}", f"{took / ours:.2f}"] for name, took in medians.items()]
    print_table(["", "median", "texts a second", "gptrio is faster by"], rows)
    save("pipelines", {"settings": settings(arguments), "seconds": seconds, "same results": same}, arguments.out)


if __name__ == "__main__":
    main()
