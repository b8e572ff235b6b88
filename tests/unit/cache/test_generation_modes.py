"""Every cache gives the tokens of the dynamic one, in every decoding mode that allows it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import gptrio
from gptrio.testing import tiny_config

FAMILIES = ("gpt2", "gpt_neo", "gpt_neox")
CACHES = ("dynamic_full", "static", "offloaded", "offloaded_static")
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    "contrastive": {"penalty_alpha": 0.5, "top_k": 3},
    "dola": {"dola_layers": "low"},
    "guidance": {"guidance_scale": 1.7},
}
ROLLS_BACK: dict[str, dict[str, Any]] = {
    "lookup": {"prompt_lookup_num_tokens": 4},
    "early exit": {"assistant_early_exit": 1},
}


@functools.cache
def expected_tokens(family: str, mode: str) -> torch.Tensor:
    """Those of the dynamic cache."""
    return tokens(family, **MODES[mode])


def tokens(family: str, **options: Any) -> torch.Tensor:
    """What a tiny model writes after two prompts, one of them padded."""
    torch.manual_seed(0)
    model = gptrio.AutoModelForCausalLM.from_config(tiny_config(family, initializer_range=0.3)).eval()
    ids = torch.randint(1, model.config.vocab_size, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return model.generate(ids, attention_mask=mask, max_new_tokens=14, eos_token_id=None, pad_token_id=0, **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_dynamic_cache(family: str, cache: str, mode: str) -> None:
    assert torch.equal(tokens(family, cache_implementation=cache, **MODES[mode]), expected_tokens(family, mode))


@pytest.mark.parametrize("mode", ROLLS_BACK)
@pytest.mark.parametrize("cache", ["dynamic_full", "offloaded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_that_are_taken_back_leave_every_cache_right(family: str, cache: str, mode: str) -> None:
    assert torch.equal(
        tokens(family, cache_implementation=cache, **ROLLS_BACK[mode]), expected_tokens(family, "greedy")
    )


@pytest.mark.parametrize("mode", ["greedy", "beams"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_int8_cache_writes_nearly_the_same(family: str, mode: str) -> None:
    exact = expected_tokens(family, mode)
    coarse = tokens(family, cache_implementation="quantized", cache_config={"nbits": 8}, **MODES[mode])
    assert coarse.shape == exact.shape
    assert (coarse == exact).float().mean() > 0.9
