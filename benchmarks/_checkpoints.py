"""Checkpoints of published shapes with random weights: speed does not depend on what the weights say.

The weights are large enough for the blocks to decide which token comes next: with small ones a tied head would repeat
the last token, and equal tokens would prove little.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

import gptrio
from _limits import Weights

SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"initializer_range": 0.03}),
    "gpt-neo-125m": (
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {
            "hidden_size": 768,
            "num_layers": 12,
            "num_heads": 12,
            "attention_types": [[["global", "local"], 6]],
            "initializer_range": 0.03,
        },
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
            "initializer_range": 0.03,
        },
    ),
}
TOYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "toy-gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
    "toy-gpt-neo": (
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    ),
    "toy-gpt-neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
    ),
}
for _, _, _options in TOYS.values():
    _options.update(vocab_size=97, bos_token_id=0, eos_token_id=None, initializer_range=0.2)


def cache_folder() -> Path:
    """Where benchmarks keep what they make: `$XDG_CACHE_HOME/gptrio/benchmarks`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptrio" / "benchmarks"


def checkpoint(name: str) -> Path:
    """The folder of a model: a path as it is, or a shape's, made on first use with a vocabulary of numbered tokens."""
    shapes = SHAPES | TOYS
    if name not in shapes:
        return Path(name)
    folder = cache_folder() / "checkpoints" / name
    if not (folder / "merges.txt").exists():
        config_class, model_class, options = shapes[name]
        config = getattr(gptrio, config_class)(**options)
        torch.manual_seed(0)
        getattr(gptrio, model_class)(config).save_pretrained(folder)
        tokens = {f"t{number}": number for number in range(config.vocab_size - 1)}
        (folder / "vocab.json").write_text(json.dumps({**tokens, "<|endoftext|>": config.vocab_size - 1}))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
        (folder / "merges.txt").write_text("#version: 0.2\n")  # last: its presence says that all is there
    return folder


def weights(folder: Path) -> Weights:
    """How many weights the model of a folder multiplies with at each position."""
    config = gptrio.AutoConfig.from_pretrained(folder)
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "n_inner", None) or getattr(config, "intermediate_size", None) or 4 * hidden
    return Weights(layers * (4 * hidden * hidden + 2 * hidden * inner), config.vocab_size * hidden)


def prompts_for(folder: Path, batch: int, length: int) -> list[list[int]]:
    """Prompts of random tokens, the same in every run."""
    vocabulary = gptrio.AutoConfig.from_pretrained(folder).vocab_size
    numbers = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary - 1, (batch, length), generator=numbers).tolist()
