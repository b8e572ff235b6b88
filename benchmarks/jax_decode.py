"""How fast do the Flax classes decode at the GPT-Neo 125M shape, beside Transformers' Flax and our PyTorch classes?

python benchmarks/jax_decode.py
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers

from _limits import Weights, weight_bytes
from _results import print_table, save
from gptrio import FlaxGPTNeoForCausalLM, GPTNeoConfig, GPTNeoForCausalLM
from machine import limits

SHAPE = {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "attention_types": [[["global", "local"], 6]]}
END, PAD = 50256, 0
OURS, JITTED, AS_IS = "gptrio", "transformers, under jit by the caller", "transformers"


def options(length: int, new: int) -> dict[str, Any]:
    """Options of `generate` for exactly so many new tokens."""
    return {"max_new_tokens": new, "min_length": length + new, "eos_token_id": END, "pad_token_id": PAD}


def seconds(call: Callable[[], Any]) -> float:
    """Duration of a call whose result is awaited."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, run in turn after a first time that does not count."""
    for call in calls.values():
        seconds(call)
    rows = [{name: seconds(call) for name, call in calls.items()} for _ in range(rounds)]
    return {name: statistics.median(row[name] for row in rows) for name in calls}


def decoding(ours: Any, oracle: Any, batch: int, prompt: int, new: int, rounds: int) -> dict[str, float]:
    """Tokens a second of `generate` by each."""
    ids = np.random.default_rng(0).integers(0, END, (batch, prompt))
    chosen = options(prompt, new)
    jitted = jax.jit(lambda params, ids: oracle.generate(ids, params=params, **chosen).sequences)
    calls: dict[str, Callable[[], Any]] = {
        OURS: lambda: ours.generate(ids, **chosen).sequences,
        JITTED: lambda: jitted(ours.params, ids),
        AS_IS: lambda: oracle.generate(ids, params=ours.params, **chosen).sequences,
    }
    return {name: batch * new / spent for name, spent in in_turn(calls, rounds).items()}


def compilations(ours: Any, count: int, new: int) -> int:
    """Programs compiled by `generate` for prompts of mixed lengths, after one of each bucket."""
    draw = np.random.default_rng(1)
    for length in (16, 32, 64, 128):
        ours.generate(draw.integers(0, END, (1, length)), **options(length, new))
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]  # a plain handler
    logging.getLogger("jax").addHandler(handler)
    with jax.log_compiles():
        for length in draw.integers(1, 129, count):
            ours.generate(draw.integers(0, END, (1, length)), **options(int(length), new))
    logging.getLogger("jax").removeHandler(handler)
    return sum(message.startswith("Compiling") for message in messages)


def prefill(ours: Any, length: int, rounds: int) -> dict[str, float]:
    """Seconds until the first token after a prompt, in Flax and in PyTorch."""
    ids = np.random.default_rng(2).integers(0, END, (1, length))
    pytorch = GPTNeoForCausalLM(GPTNeoConfig(**SHAPE)).eval()
    chosen = options(length, 1)
    calls: dict[str, Callable[[], Any]] = {
        "Flax": lambda: ours.generate(ids, **chosen).sequences,
        "PyTorch": lambda: pytorch.generate(torch.from_numpy(ids), **chosen) is None,
    }
    return in_turn(calls, rounds)


def main() -> None:
    """Print the figures and write the JSON file."""
    parser = argparse.ArgumentParser(description="Decoding with the Flax classes.")
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    ours = FlaxGPTNeoForCausalLM(GPTNeoConfig(**SHAPE))
    oracle = transformers.FlaxGPTNeoForCausalLM(transformers.GPTNeoConfig(**SHAPE), _do_init=False)
    rates = {
        batch: decoding(ours, oracle, batch, arguments.prompt, arguments.new, arguments.rounds) for batch in (1, 8)
    }
    width = SHAPE["hidden_size"]
    read = weight_bytes(Weights(12 * width * width * SHAPE["num_layers"], ours.config.vocab_size * width), "float32")
    bandwidth = limits(torch.get_num_threads())["read"]
    print_table(
        ["tokens/s", *(f"batch {batch}" for batch in rates)],
        [[name, *(f"{rate[name]:.1f}" for rate in rates.values())] for name in (OURS, JITTED, AS_IS)],
    )
    reached = {batch: rate[OURS] / batch * read / 1e9 for batch, rate in rates.items()}
    for batch, rate in reached.items():
        print(f"batch {batch}: {read / 1e6:.0f} MB of weights a step, {rate:.1f} of {bandwidth:.1f} GB/s")
    compiled = compilations(ours, 50, 8)
    print(f"{compiled} compilations for 50 prompts of mixed lengths after warm-up")
    first = prefill(ours, 1000, arguments.rounds)
    print("1,000 tokens of prompt: " + ", ".join(f"{name} {spent:.3f} s" for name, spent in first.items()))
    figures = {"tokens a second": rates, "GB/s": reached, "read": bandwidth, "compilations": compiled, "prefill": first}
    save("jax_decode", figures, arguments.out)


if __name__ == "__main__":
    main()
