"""Every cache gives the logits of the whole sequence read at once, for every family."""

from __future__ import annotations

import pytest
import torch

from gptrio.cache import DynamicCache, StaticCache, make_cache
from gptrio.models.gpt2 import GPT2LMHeadModel
from gptrio.testing.tiny import tiny_config
from tests.unit.cache.kinds import EXACT, FAMILIES, in_chunks, random_ids, tiny_model

SIZES = [30, 7, 1, 1, 90, 1, 1, 20] + [1] * 20


@pytest.mark.parametrize("by_position", (False, True), ids=("appending", "at cache_position"))
@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_in_chunks_equal_those_of_the_whole(family: str, kind: str, by_position: bool):
    model, ids = tiny_model(family), random_ids(2, sum(SIZES))
    with torch.no_grad():
        whole = model(ids).logits
    cache = EXACT[kind](model.config)
    torch.testing.assert_close(in_chunks(model, ids, cache, SIZES, by_position), whole, atol=2e-5, rtol=1e-5)
    assert cache.get_seq_length() == sum(SIZES)


@pytest.mark.parametrize("by_position", (False, True), ids=("appending", "at cache_position"))
@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_left_out_in_every_cache(family: str, kind: str, by_position: bool):
    model, sizes = tiny_model(family), [20, 60, 1, 1, 30, 1]
    ids = random_ids(2, sum(sizes))
    padding = torch.ones_like(ids)
    padding[0, :5] = 0
    plain = in_chunks(model, ids, DynamicCache(), [sum(sizes)], padding=padding)
    logits = in_chunks(model, ids, EXACT[kind](model.config), sizes, by_position, padding=padding)
    real = padding.bool()  # what GPT-NeoX says of padding depends on how many keys the call has
    torch.testing.assert_close(logits[real], plain[real], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_ready_made_mask_meets_the_keys_of_every_layer(family: str, kind: str):
    model, ids, past = tiny_model(family), random_ids(1, 101), 100
    hidden = torch.rand(1, 1, 101, 101) < 0.2
    seen = ~hidden & torch.ones(101, 101).tril().bool() | torch.eye(101).bool()
    with torch.no_grad():
        whole = model(ids, attention_mask=seen).logits[:, -1]
        cache = EXACT[kind](model.config)
        model(ids[:, :past], attention_mask=seen[:, :, :past, :past], past_key_values=cache)
        last = model(ids[:, past:], attention_mask=seen[:, :, past:], past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(last, whole, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("by_position", (False, True), ids=("appending", "at cache_position"))
@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_can_go_back_and_on_after_a_crop(family: str, kind: str, by_position: bool):
    model, ids = tiny_model(family), random_ids(1, 150)
    with torch.no_grad():
        whole = model(ids).logits
    cache = EXACT[kind](model.config)
    in_chunks(model, torch.cat([ids[:, :110], random_ids(1, 20)], dim=1), cache, [50] + [10] * 8, by_position)
    cache.crop(-20)
    assert cache.get_seq_length() == 110
    logits = in_chunks(model, ids, cache, [10, 1, 1, 28], by_position)
    torch.testing.assert_close(logits, whole[:, 110:], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ("dynamic", "static", "offloaded", "quantized"))
def test_cross_attention_keeps_its_keys_beside_any_cache(name: str):
    model = GPT2LMHeadModel(tiny_config(add_cross_attention=True)).eval()
    states, ids = torch.randn(2, 9, 32), random_ids(2, 12)
    cache = make_cache(name, model.config, 2, 12, "cpu", torch.float32)
    with torch.no_grad():
        whole = model(ids, encoder_hidden_states=states).logits
        first = model(ids[:, :7], encoder_hidden_states=states, past_key_values=cache).logits
        states.zero_()  # the cache knows them already
        rest = [
            model(ids[:, i : i + 1], encoder_hidden_states=states, past_key_values=cache).logits for i in range(7, 12)
        ]
    torch.testing.assert_close(torch.cat([first, *rest], dim=1), whole)


def test_a_static_cache_shows_where_there_is_no_room():
    model = tiny_model("gpt2")
    cache, ids = StaticCache(model.config, 10), random_ids(1, 11)
    with pytest.raises(ValueError, match="11 positions, but the cache was made for 10"):
        in_chunks(model, ids, cache, [11])
