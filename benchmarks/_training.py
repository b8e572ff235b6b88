"""One way of training, in a process of its own: it builds the model, takes its steps, and writes what each took."""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

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
    "toy": {"vocab_size": 256, "n_positions": 64, "n_embd": 64, "n_layer": 4, "n_head": 4},
}  # fmt: skip
LORA = {"gpt2": ["c_attn"], "gpt_neo": ["q_proj", "v_proj"], "gpt_neox": ["query_key_value"]}
MESSAGES = 32  # of a padded batch
GROUPS = (  # what an operation belongs to: the first whose pattern its name, or that of one around it, has
    ("attention", r"Attention|attention|bmm"),
    ("products", r"(::|^)(add)?mm\b|_linear_pointwise"),
    ("optimizer and clipping", r"Optimizer|adam|_foreach|clip"),
    ("loss", r"CrossEntropy|cross_entropy|nll_loss"),
    ("norms", r"layer_norm|LayerNorm"),
    ("GELU", r"gelu|Gelu"),
    ("dropout", r"dropout|Dropout"),
)
REST = "the rest"


def build(arguments: argparse.Namespace) -> Any:
    """The model of a way, in training mode; both libraries draw the same weights for GPT-2."""
    library = __import__(arguments.way.split(".")[0].split()[0])
    family = "gpt2" if arguments.family == "toy" else arguments.family
    config_class, model_class = (getattr(library, name) for name in CLASSES[family])
    shape = dict(SHAPES[arguments.family])
    if arguments.dropout is not None and family == "gpt2":
        shape |= dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), arguments.dropout)
    torch.manual_seed(0)
    model = model_class(config_class(**shape)).train()
    if not arguments.lora:
        return model
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fan_in_fan_out, which PEFT corrects
        config = LoraConfig(r=arguments.lora, target_modules=LORA[family], task_type="CAUSAL_LM")
        return get_peft_model(model, config)


def texts_of(arguments: argparse.Namespace, least: int) -> list[list[int]]:
    """Texts of the lengths of messages, `least` tokens of them; of a file's, if there is one."""
    rng = random.Random(0)
    lengths: Iterable[int] = iter(lambda: int(rng.lognormvariate(3, 0.7)) + 2, None)
    if arguments.messages is not None:
        from gptrio import GPT2TokenizerFast

        tokenizer = GPT2TokenizerFast.from_pretrained(str(arguments.tokenizer))
        lines = arguments.messages.read_text(encoding="utf-8").splitlines()
        lengths = [len(ids) for ids in tokenizer([line.split("\t")[-1] for line in lines])["input_ids"]]
    texts: list[list[int]] = []
    for length in lengths:
        if sum(map(len, texts)) >= least:
            break
        texts.append(
            [rng.randrange(SHAPES[arguments.family]["vocab_size"]) for _ in range(min(length, arguments.length))]
        )
    return texts


def batches(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """Examples of all steps, and how many make a batch."""
    steps, rng = arguments.steps + 1, random.Random(0)
    if arguments.texts == "long":
        length = min(arguments.length, SHAPES[arguments.family].get("n_positions", arguments.length))
        vocab = SHAPES[arguments.family]["vocab_size"]
        rows = [[rng.randrange(vocab) for _ in range(length)] for _ in range(steps * arguments.rows)]
        return [{"input_ids": row, "labels": row} for row in rows], arguments.rows
    texts = texts_of(arguments, steps * max(arguments.rows * arguments.length, MESSAGES * 64))
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


def learned_tokens(batch: dict[str, torch.Tensor]) -> int:
    """Labels that count."""
    return int((batch["labels"][:, 1:] != -100).sum())


class Turns:
    """The turns of a process: each step waits for a line, and writes what it took.

    Args:
        profiled: the step that is profiled, whose time is not to be counted; None for none.
    """

    def __init__(self, profiled: int | None) -> None:
        self.profiled, self.step, self.start = profiled, -1, (0.0, 0.0)
        self.profile: Any = None

    def begin(self) -> None:
        """Wait for the turn; end with the process that gives it."""
        if not sys.stdin.readline():
            sys.exit(1)
        self.step += 1
        if self.step == self.profiled:
            self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self.profile.start()
        self.start = time.perf_counter(), time.process_time()

    def end(self, loss: float = 0.0) -> None:
        """Write the seconds since, the peak of memory, and the shares of a profiled step."""
        wall, processor = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        found: dict[str, Any] = {
            "wall": wall,
            "processor": processor,
            "peak": int(peak.split()[1]) / 1024,
            "loss": loss,
        }
        if self.step == self.profiled:
            self.profile.stop()
            found["shares"] = shares(self.profile.events())
        print(json.dumps(found), flush=True)


def shares(events: Any) -> dict[str, float]:
    """Share of the time that each group of operations took."""
    times: Counter[str] = Counter()
    for event in events:
        times[_group(event)] += event.self_cpu_time_total
    total = sum(times.values())
    return {name: time / total for name, time in times.most_common()}


def _group(event: Any) -> str:
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return next((group for group, pattern in GROUPS if any(re.search(pattern, name) for name in names)), REST)


def run_loop(arguments: argparse.Namespace, model: Any, examples: list[dict[str, Any]], size: int) -> None:
    """Train by the shortest loop that computes what the Trainers do."""
    lean = {"logits": False, "use_cache": False} if arguments.way.startswith("gptrio") else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    turns = Turns(arguments.profiled)
    for step in range(arguments.steps):
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
    turns = Turns(arguments.profiled)

    class TakeTurns(library.TrainerCallback):  # type: ignore[misc,name-defined]  # of either library
        """Takes each step in its turn."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.end()

    with tempfile.TemporaryDirectory() as folder:
        args = library.TrainingArguments(
            output_dir=folder, per_device_train_batch_size=size, max_steps=arguments.steps, use_cpu=True,
            bf16=arguments.dtype == "bfloat16", save_strategy="no", logging_strategy="no", report_to="none",
            disable_tqdm=True, remove_unused_columns=False,
        )  # fmt: skip
        library.Trainer(
            model=model, args=args, train_dataset=examples, data_collator=collate, callbacks=[TakeTurns()]
        ).train()


def work(arguments: argparse.Namespace) -> None:
    """Train in this process; some tokens go forward and back first, so that no step is the first call."""
    torch.set_num_threads(arguments.threads)
    model, (examples, size) = build(arguments), batches(arguments)
    with torch.autocast("cpu", torch.bfloat16, enabled=arguments.dtype == "bfloat16"):
        loss = model(**{name: ids[:, :8] for name, ids in collate(examples[:1]).items()}).loss
    loss.backward()
    model.zero_grad()
    run = run_trainer if arguments.way.endswith("Trainer") else run_loop
    run(arguments, model, examples, size)
