"""Caches by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gptrio.cache import Cache, EncoderDecoderCache, cache_names, make_cache
from gptrio.errors import OptionError
from gptrio.generation.options.schema import CACHE_NAMES
from gptrio.testing.tiny import tiny_config
from tests.unit.cache.kinds import FAMILIES, in_chunks, random_ids, tiny_model


def make(name: str | None, family: str = "gpt2", options: dict[str, Any] | None = None, **config: Any) -> Cache:
    return make_cache(name, tiny_config(family, **config), 2, 50, torch.device("cpu"), torch.float32, options)


@pytest.mark.parametrize("name", (None, *cache_names()))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_gives_a_cache_that_works(family: str, name: str | None):
    model, ids = tiny_model(family), random_ids(2, 40)
    cache = make_cache(name, model.config, 2, 50, "cpu", torch.float32)
    torch.testing.assert_close(in_chunks(model, ids, cache, [30, 1, 9]), model(ids).logits, atol=1e-4, rtol=1e-4)


def test_the_names_are_those_of_the_option():
    assert sorted(cache_names()) == sorted(CACHE_NAMES)


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(OptionError, match="cache_implementation='paged' is not known; use one of dynamic, "):
        make("paged")


def test_options_reach_the_cache():
    assert make("static", options={"max_cache_len": 70}).max_cache_len == 70
    assert make("quantized", options={"nbits": 8, "backend": "quanto"}).layers[0].nbits == 8
    kinds = [type(layer).__name__ for layer in make("offloaded", "gpt_neo", {"offload_only_non_sliding": True}).layers]
    assert kinds == ["OffloadedLayer", "DynamicSlidingWindowLayer"]


@pytest.mark.parametrize(
    ("name", "options", "takes"),
    (
        ("dynamic", {"nbits": 4}, "no options"),
        ("static", {"nbits": 4}, "max_cache_len"),
        (None, {"x": 1}, "no options"),
    ),
)
def test_unknown_options_are_refused(name: str | None, options: dict[str, Any], takes: str):
    with pytest.raises(OptionError, match=f"the '{name or 'dynamic'}' cache takes {takes}"):
        make(name, options=options)


def test_static_buffers_are_there_at_once():
    cache = make("static")
    assert cache[0][0].shape == (2, 4, 50, 8)


@pytest.mark.parametrize("name", cache_names())
def test_models_with_cross_attention_get_both_sides(name: str):
    cache = make(name, add_cross_attention=True)
    assert isinstance(cache, EncoderDecoderCache)
    assert len(cache.cross_attention_cache) == 0
