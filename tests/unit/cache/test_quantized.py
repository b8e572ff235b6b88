"""Quantized caches: every number within half a step, new positions as they are, and a stated error of the logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptrio import AutoModelForCausalLM, AutoTokenizer
from gptrio.cache import QuantizedCache
from gptrio.cache import protocol as base
from gptrio.cache.quantized import QuantizedLayer, quantize
from gptrio.errors import OptionError
from gptrio.testing.tiny import tiny_config
from tests.unit.cache.kinds import FAMILIES, QUANTIZED, in_chunks, random_ids, tiny_model

# largest error of a logit after 100 quantized positions, as a share of the standard deviation of the logits
LOGIT_ERROR = {"int8": 0.003, "int4": 0.05, "int2": 0.3}  # of random models
TRAINED_LOGIT_ERROR = {8: 0.02, 4: 0.3, 2: 1.0}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("per", ("channel", "token"))
@pytest.mark.parametrize("nbits", (2, 4, 8))
@pytest.mark.parametrize("width", (1, 6, 8))
def test_every_number_is_within_half_a_step(nbits: int, per: Any, dtype: torch.dtype, width: int):
    states = (torch.randn(2, 3, 32, width) * torch.logspace(-2, 2, width)).to(dtype)  # channels of very unlike size
    codes = quantize(states, nbits, 16, per)
    axis = -2 if per == "channel" else -1
    groups = states.float().reshape(2, 3, 2, 16, width)
    low, high = groups.aminmax(dim=axis, keepdim=True)
    rounding = groups.abs().amax(axis, keepdim=True) * torch.finfo(dtype).eps * 4
    bound = (high - low) / (2 * (2**nbits - 1)) + rounding
    error = (codes.numbers().float().reshape_as(groups) - groups).abs()
    assert bool((error <= bound * 1.001).all())
    assert codes.packed.shape[-1] == -(-width * nbits // 8)


def test_numbers_that_are_all_the_same_come_back_exactly():
    states = torch.full((1, 1, 8, 4), 3.25)
    assert torch.equal(quantize(states, 4, 8, "channel").numbers(), states)


@torch.no_grad()
def test_new_positions_and_the_newest_ones_stay_exact():
    layer, keys = QuantizedLayer(2, q_group_size=8, residual_length=20), torch.randn(1, 2, 100, 4)
    first, _ = layer.update(keys[:, :, :60], keys[:, :, :60])
    assert torch.equal(first, keys[:, :, :60])
    seen, _ = layer.update(keys[:, :, 60:61], keys[:, :, 60:61])
    assert torch.equal(seen[:, :, 40:], keys[:, :, 40:61])
    assert not torch.equal(seen[:, :, :40], keys[:, :, :40])


@torch.no_grad()
@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_error_of_the_logits_is_bounded(family: str, kind: str):
    model, ids = tiny_model(family), random_ids(4, 160)
    whole = model(ids).logits
    logits = in_chunks(model, ids, QUANTIZED[kind](model.config), [120] + [1] * 40)
    error = (logits - whole)[:, 120:].abs().max() / whole.std()
    assert 0 < error < LOGIT_ERROR[kind]


@torch.no_grad()
@pytest.mark.parametrize("nbits", TRAINED_LOGIT_ERROR)
def test_the_error_of_a_trained_model_is_bounded(nbits: int):
    model = AutoModelForCausalLM.from_pretrained("gptrio/stdlib-gpt2").eval()
    text = Path(base.__file__).read_text(encoding="utf-8")
    encode = AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2")
    ids = encode(text, return_tensors="pt", truncation=True, max_length=220).input_ids
    whole = model(ids).logits
    cache = QuantizedCache("native", model.config, nbits, q_group_size=32, residual_length=16)
    error = (in_chunks(model, ids, cache, [160] + [1] * 60) - whole)[:, 160:].abs()
    assert 0 < error.max() / whole.std() < TRAINED_LOGIT_ERROR[nbits]
    assert error.mean() < 0.1 * TRAINED_LOGIT_ERROR[nbits] * whole.std()


@torch.no_grad()
@pytest.mark.parametrize("nbits", (2, 4, 8))
def test_the_memory_shrinks_with_the_bits(nbits: int):
    layer, states = QuantizedLayer(nbits, 64, 0), torch.randn(1, 4, 1024, 64)
    layer.update(states, states)
    assert layer._codes is not None
    stored = sum(x.numel() * x.element_size() for codes in layer._codes for x in (codes.packed, codes.low, codes.step))
    assert stored < states.numel() * 2 * 4 * (nbits / 32 + 0.04)


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"backend": "other"}, "backend='other' is not possible for a quantized cache; expected one of native"),
        ({"nbits": 3}, "nbits=3 is not possible for a quantized cache; expected one of 2, 4, 8"),
        ({"axis_key": 2}, "axis_key=2 is not possible"),
        ({"q_group_size": 0}, "q_group_size=0 is not possible"),
        ({"residual_length": -1}, "residual_length=-1 is not possible"),
    ),
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(OptionError, match=message):
        QuantizedCache(**{"backend": "native", "config": tiny_config("gpt2"), **options})
