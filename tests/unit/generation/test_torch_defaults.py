"""torch's default dtype and default device change no result: every mode, cache and processor, and the forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.unit.generation.test_columns import FAMILIES, model_of

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "plain": {"disable_compile": True},
    "sample": {
        "do_sample": True, "seed": 3, "top_p": 0.9, "typical_p": 0.9, "min_p": 0.01, "epsilon_cutoff": 1e-3,
        "eta_cutoff": 1e-3, "temperature": 0.8, "repetition_penalty": 1.2,
    },
    "rules": {
        "bad_words_ids": [[5], [6, 7]], "no_repeat_ngram_size": 2, "min_new_tokens": 3, "sequence_bias": [[[5], 2.0]],
        "suppress_tokens": [4], "eos_token_id": 11, "forced_eos_token_id": 11,
        "exponential_decay_length_penalty": (3, 1.2),
    },
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 3, "do_sample": True, "seed": 1},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained": {"num_beams": 3, "force_words_ids": [[7, 8]]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 3},
    "dola": {"dola_layers": "low"},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "early exit": {"assistant_early_exit": 1},
    "guided": {"guidance_scale": 1.5},
    "green list": {"watermarking_config": {"bias": 2.5}},
    "static": {"cache_implementation": "static"},
    "offloaded": {"cache_implementation": "offloaded"},
    "quantized": {"cache_implementation": "quantized"},
}  # fmt: skip
ONE_ROW = ("lookup", "early exit")


@contextmanager
def default(name: str) -> Iterator[None]:
    """Another default dtype, or for "meta" a default device on which nothing can be computed."""
    if name == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_gives_the_same_tokens(family: str, mode: str) -> None:
    model, rows = model_of(family), 1 if mode in ONE_ROW else 2
    ids, mask = torch.randint(12, 200, (rows, 9)), torch.ones(rows, 9, dtype=torch.long)
    mask[0, :3] = 0 if rows > 1 else 1
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 6, "pad_token_id": 0, "do_sample": False}
    expected = model.generate(ids, **{**options, **MODES[mode]})
    for name in ("float64", "float16", "meta"):
        with default(name):
            found = model.generate(ids, **{**options, **MODES[mode]})
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_gives_the_same_numbers(family: str) -> None:
    model, ids = model_of(family), torch.randint(1, 200, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0

    def numbers() -> tuple[torch.Tensor, torch.Tensor]:
        out = model(ids, attention_mask=mask, labels=ids, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
        return out.loss.detach(), out.logits.detach()

    expected = numbers()
    for name in ("float64", "float16", "meta"):
        with default(name):
            found = numbers()
        assert all(torch.equal(own, other) for own, other in zip(found, expected, strict=True)), name
