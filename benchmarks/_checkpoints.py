"""Checkpoints of published shapes with random weights: speed does not depend on what the weights say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

import gptrio

SHAPES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {}),
    "gpt-neo-125m": (
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "attention_types": [[["global", "local"], 6]]},
    ),
    "pythia-160m": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {
            "vocab_size": 50304,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
        },
    ),
}


def cache_folder() -> Path:
    """Where benchmarks keep what they make: `$XDG_CACHE_HOME/gptrio/benchmarks`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptrio" / "benchmarks"


def checkpoint(name: str) -> Path:
    """The folder of a model: a path as it is, or a shape's, made on first use with a vocabulary of numbered tokens."""
    if name not in SHAPES:
        return Path(name)
    folder = cache_folder() / "checkpoints" / name
    if not (folder / "merges.txt").exists():
        config_class, model_class, options = SHAPES[name]
        config = getattr(gptrio, config_class)(**options)
        torch.manual_seed(0)
        getattr(gptrio, model_class)(config).save_pretrained(folder)
        tokens = {f"t{number}": number for number in range(config.vocab_size - 1)}
        (folder / "vocab.json").write_text(json.dumps({**tokens, "<|endoftext|>": config.vocab_size - 1}))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
        (folder / "merges.txt").write_text("#version: 0.2\n")  # last: its presence says that all is there
    return folder


def weight_counts(folder: Path) -> tuple[int, int]:
    """Weights of the blocks' linear layers, and of the head."""
    config = gptrio.AutoConfig.from_pretrained(folder)
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "n_inner", None) or getattr(config, "intermediate_size", None) or 4 * hidden
    return layers * (4 * hidden * hidden + 2 * hidden * inner), config.vocab_size * hidden


def weight_bytes(folder: Path, dtype: str) -> int:
    """Bytes that one decoding step must read: every weight of the blocks and the head, in `dtype`."""
    blocks, head = weight_counts(folder)
    if dtype == "int4":  # the head has 8 bits where it is tied; a scale of 2 bytes for 32 weights
        return blocks // 2 + blocks // 16 + head
    return (blocks + head) * {"float32": 4, "int8": 1}.get(dtype, 2)
