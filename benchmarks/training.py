"""How many tokens does a step of fine-tuning take in a second, and how much memory, beside Transformers?

Each way trains a model of random weights in a process of its own; all wait for each other, and take their steps in
turns, so that what else the machine does slows all of them. Seconds are from a step's first forward to its update,
of the fastest step; memory is the peak. With `--texts short`, texts have the lengths of text messages: rows of
Transformers are padded to the longest of 32, gptrio's are packed, and only tokens that are learned count.

    python benchmarks/training.py --steps 3
    python benchmarks/training.py --dtype bfloat16 --ways "transformers loop" "gptrio loop"
    python benchmarks/training.py --texts short
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from _results import print_table, save

WAYS = ("transformers.Trainer", "transformers loop", "gptrio.Trainer", "gptrio loop")
HEAD = ("way", "tokens a second", "of the first", "median seconds a step", "peak MB", "of the first", "loss")
CLASSES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "gpt_neo": ("GPTNeoConfig", "GPTNeoForCausalLM"),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM"),
}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt_neo": {
        "vocab_size": 50257, "max_position_embeddings": 2048, "hidden_size": 768, "num_layers": 12, "num_heads": 12,
        "attention_types": [[["global", "local"], 6]], "window_size": 256,
    },
    "gpt_neox": {
        "vocab_size": 50304, "max_position_embeddings": 2048, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072,
    },
}  # fmt: skip
MESSAGES = 32  # of a padded batch


def build(arguments: argparse.Namespace) -> Any:
    """The model of a way, in training mode; both libraries draw the same weights for GPT-2."""
    library = __import__(arguments.way.split(".")[0].split()[0])
    config_class, model_class = (getattr(library, name) for name in CLASSES[arguments.family])
    shape = dict(SHAPES[arguments.family])
    if arguments.layers is not None:
        layers = "n_layer" if arguments.family == "gpt2" else "num_layers"
        shape["num_hidden_layers" if arguments.family == "gpt_neox" else layers] = arguments.layers
        if arguments.family == "gpt_neo":
            shape["attention_types"] = [[["global", "local"], arguments.layers // 2]]
    if arguments.dropout is not None and arguments.family == "gpt2":
        shape |= dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), arguments.dropout)
    torch.manual_seed(0)
    return model_class(config_class(**shape)).train()


def batches(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """Examples of all steps, and how many make a batch."""
    rng = random.Random(0)
    steps = arguments.steps + 1
    if arguments.texts == "long":
        count = steps * arguments.rows
        rows = [[rng.randrange(50000) for _ in range(arguments.length)] for _ in range(count)]
        return [{"input_ids": row, "labels": row} for row in rows], arguments.rows
    texts = []
    while sum(map(len, texts)) < steps * max(arguments.rows * arguments.length, MESSAGES * 64):
        length = min(int(rng.lognormvariate(3, 0.7)) + 2, arguments.length)
        texts.append([rng.randrange(50000) for _ in range(length)])
    if arguments.way.startswith("gptrio"):
        from gptrio import pack

        return pack(texts, arguments.length), arguments.rows
    return [{"input_ids": text, "labels": text} for text in texts], MESSAGES


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch, padded to the longest example and with a mask if their lengths differ."""
    columns = {name: [torch.tensor(example[name]) for example in examples] for name in examples[0]}
    if len({len(row) for row in columns["input_ids"]}) == 1:
        return {name: torch.stack(rows) for name, rows in columns.items()}
    columns["attention_mask"] = [torch.ones_like(row) for row in columns["input_ids"]]
    pad = torch.nn.utils.rnn.pad_sequence
    return {name: pad(rows, True, -100 if name == "labels" else 0) for name, rows in columns.items()}


class Turns:
    """The turns of a process: each step waits for a line, and writes what it took."""

    def __init__(self) -> None:
        self.start = 0.0

    def begin(self) -> None:
        """Wait for the turn; end with the process that gives it."""
        if not sys.stdin.readline():
            sys.exit(1)
        self.start = time.perf_counter()

    def end(self, loss: float = 0.0) -> None:
        """Write the seconds since."""
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        found = {"seconds": time.perf_counter() - self.start, "peak": int(peak.split()[1]) / 1024, "loss": loss}
        print(json.dumps(found), flush=True)


def learned_tokens(batch: dict[str, torch.Tensor]) -> int:
    """Labels that count."""
    return int((batch["labels"][:, 1:] != -100).sum())


def run_loop(arguments: argparse.Namespace, model: Any, examples: list[dict[str, Any]], size: int) -> None:
    """Train by the shortest loop that computes what the Trainers do."""
    lean = {"logits": False, "use_cache": False} if arguments.way.startswith("gptrio") else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    turns = Turns()
    for step in range(arguments.steps + 1):
        batch = collate(examples[step * size : (step + 1) * size])
        turns.begin()
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.dtype == "bfloat16"):
            loss = model(**batch, **lean).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turns.end(loss.item())


def run_trainer(arguments: argparse.Namespace, model: Any, examples: list[dict[str, Any]], size: int) -> None:
    """Train by a library's Trainer, without saving and reports."""
    library = __import__(arguments.way.split(".")[0])
    turns = Turns()

    class TakeTurns(library.TrainerCallback):  # type: ignore[misc,name-defined]  # of either library
        """Takes each step in its turn."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.end()

    with tempfile.TemporaryDirectory() as folder:
        args = library.TrainingArguments(
            output_dir=folder, per_device_train_batch_size=size, max_steps=arguments.steps + 1, use_cpu=True,
            bf16=arguments.dtype == "bfloat16", save_strategy="no", logging_strategy="no", report_to="none",
            disable_tqdm=True, remove_unused_columns=False,
        )  # fmt: skip
        library.Trainer(
            model=model, args=args, train_dataset=examples, data_collator=collate, callbacks=[TakeTurns()]
        ).train()


def turns_of(arguments: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """What each way took for its steps, one step of each way after another."""
    processes = {}
    for way in arguments.ways:
        command = [sys.executable, "-W", "ignore", *sys.argv, "--way", way]
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TRANSFORMERS_VERBOSITY": "error"}
        processes[way] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
    found: dict[str, list[dict[str, float]]] = {way: [] for way in processes}
    for _ in range(arguments.steps + 1):
        for way, process in processes.items():
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            line = next(line for line in process.stdout if line.startswith("{"))
            found[way].append(json.loads(line))
    for process in processes.values():
        process.communicate()
    return found


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description="Speed and memory of fine-tuning.")
    parser.add_argument("--family", choices=SHAPES, default="gpt2")
    parser.add_argument("--layers", type=int, help="of the model, instead of 12")
    parser.add_argument("--dropout", type=float, help="of GPT-2, instead of 0.1")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16 is autocast")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--texts", choices=("long", "short"), default="long")
    parser.add_argument("--steps", type=int, default=5, help="after one that does not count")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS)
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--way", help=argparse.SUPPRESS)  # of this process
    arguments = parser.parse_args()
    if arguments.way is not None:
        torch.set_num_threads(arguments.threads)
        run = run_trainer if arguments.way.endswith("Trainer") else run_loop
        run(arguments, build(arguments), *batches(arguments))
        return
    found = turns_of(arguments)
    rows, first = [], None
    for way, steps in found.items():
        arguments.way = way
        examples, size = batches(arguments)
        tokens = [learned_tokens(collate(examples[i * size : (i + 1) * size])) for i in range(1, arguments.steps + 1)]
        seconds = [step["seconds"] for step in steps[1:]]
        speed = max(count / second for count, second in zip(tokens, seconds, strict=True))
        peak = max(step["peak"] for step in steps)
        first = first or (speed, peak)
        shown = (f"{speed:.0f}", f"{speed / first[0]:.2f}", f"{statistics.median(seconds):.2f}", f"{peak:.0f}")
        rows.append((way, *shown, f"{peak / first[1]:.2f}", f"{steps[-1]['loss']:.4f}"))
    print_table(HEAD, rows)
    settings = {name: str(value) for name, value in vars(arguments).items()}
    save("training", {"settings": settings, "found": found}, arguments.out)


if __name__ == "__main__":
    main()
