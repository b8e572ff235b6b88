"""Offloaded layers: what is where, and when it is fetched."""

from __future__ import annotations

import copy

import pytest
import torch

from gptrio.cache import DynamicCache, DynamicSlidingWindowLayer, OffloadedCache, OffloadedStaticCache, StaticLayer
from gptrio.cache.offloaded import OffloadedLayer
from gptrio.errors import InputError
from gptrio.testing.tiny import tiny_config
from tests.unit.cache.kinds import CAPACITY, FAMILIES, in_chunks, random_ids, tiny_model


@torch.no_grad()
def test_the_next_layer_is_fetched_while_one_is_used():
    cache, states = OffloadedCache(), torch.randn(1, 2, 3, 4)
    for _ in range(2):
        for i in range(3):
            cache.update(states, states, i)
            fetched = [layer._fetched is not None for layer in cache.layers]
    assert fetched == [True, False, False]  # after the last layer, the first one of the next step
    cache.update(states, states, 0)
    assert [layer._fetched is not None for layer in cache.layers] == [False, True, False]
    cache.crop(4)
    assert [layer._fetched is not None for layer in cache.layers] == [False, False, False]


def test_layers_are_offloaded_as_asked():
    config = tiny_config("gpt_neo")
    assert [type(layer) for layer in OffloadedCache(config=config).layers] == [OffloadedLayer, OffloadedLayer]
    cache = DynamicCache(config=config, offloading=True, offload_only_non_sliding=True)
    assert [type(layer) for layer in cache.layers] == [OffloadedLayer, DynamicSlidingWindowLayer]
    static = OffloadedStaticCache(config, 40)
    assert [type(layer) for layer in static.layers] == [OffloadedLayer, StaticLayer]
    assert static.get_max_cache_shape() == static.max_cache_len == 40


@torch.no_grad()
def test_a_single_layer_is_fetched_when_it_is_complete():
    model = tiny_model("gpt2")
    cache, states = OffloadedCache(), torch.randn(1, 2, 3, 4)
    for count in (3, 6, 9):
        assert cache.update(states, states, 0)[0].shape[2] == count
    assert model.config.num_hidden_layers == 2


@torch.no_grad()
def test_positions_past_the_end_are_refused():
    cache, states = OffloadedStaticCache(tiny_config("gpt2"), 8), torch.randn(1, 4, 9, 8)
    with pytest.raises(InputError, match="9 positions, but the cache was made for 8"):
        cache.update(states, states, 0)


def test_given_keys_and_values_are_taken():
    pairs = [(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)) for _ in range(2)]
    cache = OffloadedCache.from_legacy_cache(tuple(pairs))
    assert isinstance(cache, OffloadedCache)
    torch.testing.assert_close(list(cache.to_legacy_cache()), pairs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_gpu_the_past_waits_in_the_host_and_the_logits_stay(family: str):
    model = copy.deepcopy(tiny_model(family)).cuda()
    ids, sizes = random_ids(2, CAPACITY).cuda(), [120, 1, 1, 38] + [1] * 40
    expected = in_chunks(model, ids, DynamicCache(config=model.config), sizes)
    cache = OffloadedCache(config=model.config)
    torch.testing.assert_close(in_chunks(model, ids, cache, sizes), expected, atol=1e-4, rtol=1e-4)
    assert {keys.device.type for keys, _ in cache} == {"cpu"}
