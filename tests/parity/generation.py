"""The same tiny random model in both libraries, and random batches to generate from."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import torch

import gptrio
from gptrio.testing import tiny_config

FAMILIES = ["gpt2", "gpt_neo", "gpt_neox"]


@lru_cache
def pair_of_models(family: str, seed: int = 0, attn_implementation: str | None = None, **overrides: Any) -> tuple:
    """A model of this package and transformers' model with the same weights, whose next tokens differ clearly."""
    import transformers

    torch.manual_seed(seed)
    config = tiny_config(family, initializer_range=0.3, **overrides)
    ours = gptrio.AutoModelForCausalLM.from_config(config).eval()
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    foreign = transformers.AutoConfig.for_model(**config.to_dict())
    theirs = transformers.AutoModelForCausalLM.from_config(foreign, **options).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def random_batch(rng: random.Random, vocab: int, rows: int | None = None, padded: bool | None = None) -> dict:
    """Ids (B, T) and their mask; padded on the left in half of the cases."""
    rows = rows or rng.choice([1, 1, 2, 3, 4])
    lengths = [rng.randint(2, 10) for _ in range(rows)]
    if not (rng.random() < 0.5 if padded is None else padded):
        lengths = [max(lengths)] * rows
    ids = torch.zeros(rows, max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, -length:] = torch.tensor([rng.randrange(1, vocab) for _ in range(length)])
        mask[row, -length:] = 1
    return {"input_ids": ids, "attention_mask": mask}
