"""GPT-Neo far past its window: a rolling cache that is cropped, reordered and handed on, and long generation."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

import gptrio
from gptrio.cache import DynamicSlidingWindowLayer
from gptrio.testing import assert_close
from tests.reference import model_pair, padded, positions_of, token_ids

WINDOW = 6
SIZES: dict[str, Any] = {"window_size": WINDOW, "max_position_embeddings": 400}


class Story:
    """One batch of sequences under a rolling cache, told step by step; the whole text is kept beside it."""

    def __init__(self, model: Any, rng: random.Random) -> None:
        self.model, self.rng = model, rng
        self.cache: Any = gptrio.DynamicCache(config=model.config)
        self.ids = torch.empty(rng.choice([1, 2, 3]), 0, dtype=torch.long)

    def read(self) -> None:
        """New tokens of any number give the logits of the whole text run afresh."""
        new = token_ids(len(self.ids), self.rng.choice([1, 1, 1, 2, 5, WINDOW, 2 * WINDOW + 1, 23]))
        self.ids = torch.cat([self.ids, new], dim=1)
        logits = self.model(new, past_key_values=self.cache).logits
        assert_close(logits, self.model(self.ids, use_cache=False).logits[:, -new.shape[1] :])
        assert self.cache.get_seq_length() == self.ids.shape[1]

    def crop(self) -> None:
        """A crop is right, or refused because the window has let go of what it needs."""
        gone = min(self.rng.choice([1, 2, 5, 30]), self.ids.shape[1])
        length = self.ids.shape[1] - gone
        try:
            self.cache.crop(self.rng.choice([length, -gone]))
        except gptrio.InputError as error:
            assert "cannot be cropped" in str(error)
            assert gone > WINDOW
            self.restart(length)
        self.ids = self.ids[:, :length]

    def restart(self, length: int) -> None:
        self.cache = gptrio.DynamicCache(config=self.model.config)
        self.model(self.ids[:, :length], past_key_values=self.cache)

    def choose_rows(self) -> None:
        chosen = torch.tensor([self.rng.randrange(len(self.ids)) for _ in self.ids])
        self.cache.reorder_cache(chosen)
        self.ids = self.ids[chosen]

    def copy_rows(self) -> None:
        if len(self.ids) < 4:
            self.cache.batch_repeat_interleave(2)
            self.ids = self.ids.repeat_interleave(2, dim=0)

    def hand_on(self) -> None:
        """As a legacy tuple, and back."""
        if self.ids.shape[1]:
            self.cache = gptrio.DynamicCache.from_legacy_cache(self.cache.to_legacy_cache(), self.model.config)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(30))
def test_any_story_of_a_rolling_cache(seed: int) -> None:
    rng = random.Random(seed)
    _, model = model_pair("GPTNeoForCausalLM", rng.choice(["eager", "sdpa"]), **SIZES)
    story = Story(model, rng)
    story.read()
    for _ in range(12):
        rng.choice([story.read, story.read, story.crop, story.choose_rows, story.copy_rows, story.hand_on])()
    story.read()


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_step_by_step(side: str) -> None:
    oracle, model = model_pair("GPTNeoForCausalLM", "sdpa", **SIZES)
    ids, mask = token_ids(3, 60), padded([60, 33, 9], 60, "left")
    if side == "right":  # a short prompt, then new tokens for every row
        mask = torch.cat([padded([20, 7, 1], 20, "right"), torch.ones(3, 40, dtype=torch.long)], dim=1)
    positions = positions_of(mask)
    expected = oracle(ids, attention_mask=mask, position_ids=positions).logits
    cache, start = None, 0
    for end in [20, *range(21, 61)]:
        new = {"input_ids": ids[:, start:end], "position_ids": positions[:, start:end]}
        out = model(**new, attention_mask=mask[:, :end], past_key_values=cache)
        real = mask[:, start:end].bool()
        assert_close(out.logits[real], expected[:, start:end][real])
        cache, start = out.past_key_values, end


@torch.no_grad()
def test_a_cache_of_the_whole_past_gives_the_same() -> None:
    _, model = model_pair("GPTNeoForCausalLM", "sdpa", **SIZES)
    ids = token_ids(2, 50)
    expected = model(ids, use_cache=False).logits
    whole = gptrio.DynamicCache()
    for start, end in ((0, 30), (30, 31), (31, 50)):
        assert_close(model(ids[:, start:end], past_key_values=whole).logits, expected[:, start:end])
    assert {layer.keys.shape[2] for layer in whole.layers} == {50}


@torch.no_grad()
def test_local_layers_hold_a_window_and_not_the_past() -> None:
    _, model = model_pair("GPTNeoForCausalLM", **SIZES)
    cache = gptrio.DynamicCache(config=model.config)
    for _ in range(3):
        model(token_ids(1, 100), past_key_values=cache)
    for step in token_ids(1, 90).split(1, dim=1):
        model(step, past_key_values=cache)
    assert cache.get_seq_length() == 390
    local = [layer.keys.shape[2] for layer in cache.layers if isinstance(layer, DynamicSlidingWindowLayer)]
    assert len(local) == 2
    assert max(local) <= WINDOW + 64 + 100 + 64  # window, reach of a crop, the longest call and room to append


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"repetition_penalty": 1.3},
        {"use_cache": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["GPTNeo", "GPTNeoX"])
def test_long_generation_equals_the_reference(family: str, options: dict[str, Any]) -> None:
    oracle, model = model_pair(
        f"{family}ForCausalLM", "sdpa", **(SIZES if family == "GPTNeo" else {"max_position_embeddings": 400})
    )
    for one in (oracle, model):
        one.get_output_embeddings().weight.mul_(5.0)  # next tokens that differ clearly
    mask = padded([9, 4, 7], 9, "left")
    given: dict[str, Tensor] = {"input_ids": token_ids(3, 9), "attention_mask": mask}
    options = {**options, "max_new_tokens": 60, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(**given, **options), oracle.generate(**given, **options))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*positions; text beyond may degrade")
@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_long_generation_under_stretched_positions(kind: str) -> None:
    config = {"rope_scaling": {"rope_type": kind, "factor": 4.0}, "rotary_pct": 0.5, "max_position_embeddings": 16}
    oracle, model = model_pair("GPTNeoXForCausalLM", "sdpa", **config)
    for one in (oracle, model):
        one.get_output_embeddings().weight.mul_(5.0)
    options = {"max_new_tokens": 50, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = token_ids(3, 9)
    given: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(**given, **options), oracle.generate(**given, **options))
