"""One row per family and per cache: what the tests of this folder run over."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from gptrio.cache import Cache, DynamicCache, OffloadedCache, QuantizedCache, StaticCache
from gptrio.config import PretrainedConfig
from gptrio.models.auto import AutoModelForCausalLM
from gptrio.testing.tiny import tiny_config

CAPACITY = 200
FAMILIES = ("gpt2", "gpt_neo", "gpt_neox")
EXACT: dict[str, Callable[[PretrainedConfig], Cache]] = {
    "dynamic": lambda config: DynamicCache(config=config),
    "dynamic_full": lambda config: DynamicCache(),
    "static": lambda config: StaticCache(config, CAPACITY),
    "offloaded": lambda config: OffloadedCache(config=config),
    "offloaded_global": lambda config: DynamicCache(config=config, offloading=True, offload_only_non_sliding=True),
    "offloaded_static": lambda config: StaticCache(config, CAPACITY, offloading=True, offload_only_non_sliding=False),
}
QUANTIZED: dict[str, Callable[[PretrainedConfig], Cache]] = {
    f"int{nbits}": functools.partial(
        lambda config, nbits: QuantizedCache("native", config, nbits, q_group_size=8, residual_length=12), nbits=nbits
    )
    for nbits in (8, 4, 2)
}
CACHES = EXACT | QUANTIZED


@functools.cache
def tiny_model(family: str) -> Any:
    """A model whose weights are large enough that every past position matters, with `CAPACITY` positions."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(tiny_config(family, max_position_embeddings=CAPACITY)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def random_ids(rows: int, length: int) -> torch.Tensor:
    """(rows, length) random tokens."""
    return torch.randint(0, 256, (rows, length))


@torch.no_grad()
def in_chunks(
    model: Any,
    ids: torch.Tensor,
    cache: Cache,
    sizes: list[int],
    by_position: bool = False,
    padding: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits of `ids` read in pieces of `sizes` after what the cache holds, with `cache_position` if `by_position`."""
    logits, start = [], cache.get_seq_length()
    for size in sizes:
        end = start + size
        inputs: dict[str, Any] = {"cache_position": torch.arange(start, end)} if by_position else {}
        if padding is not None:
            positions = (padding.cumsum(-1) - 1).clamp(min=0)
            inputs |= {"attention_mask": padding[:, :end], "position_ids": positions[:, start:end]}
        logits.append(model(ids[:, start:end], past_key_values=cache, use_cache=True, **inputs).logits)
        start = end
    return torch.cat(logits, dim=1)
