"""Caches against Transformers': the same calls give the same tensors, sizes and lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer as TheirWindowLayer

import gptrio
from gptrio.cache import DynamicSlidingWindowLayer
from gptrio.testing.tiny import tiny_config

LAYERS = 2


def states(*lengths: int, rows: int = 2) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(rows, 4, n, 8), torch.randn(rows, 4, n, 8)) for n in lengths]


def both(kind: str, **options: Any) -> tuple[Any, Any]:
    if kind == "DynamicCache":
        return transformers.DynamicCache(), gptrio.DynamicCache()
    oracle = transformers.GPT2Config(n_layer=LAYERS, n_head=4, n_embd=32)
    ours = tiny_config("gpt2")
    return transformers.StaticCache(oracle, **options), gptrio.StaticCache(ours, **options)


def models() -> tuple[Any, Any]:
    """The reference's GPT-2 and ours, with the same weights."""
    theirs, ours = (
        library.GPT2LMHeadModel(library.GPT2Config(vocab_size=257, n_layer=2, n_head=4, n_embd=32)).eval()
        for library in (transformers, gptrio)
    )
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def feed(cache: Any, pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Update every layer with every pair, telling positions; what the updates returned, copied."""
    returned, start = [], 0
    with torch.no_grad():
        for keys, values in pairs:
            position = torch.arange(start, start + keys.shape[2])
            for layer in range(LAYERS):
                seen = cache.update(keys * (layer + 1), values, layer, {"cache_position": position})
                returned.append((seen[0].clone(), seen[1].clone()))
            start += keys.shape[2]
    return returned


def facts(cache: Any) -> dict[str, Any]:
    position = torch.arange(int(cache.get_seq_length()), int(cache.get_seq_length()) + 3)
    return {
        "length": int(cache.get_seq_length()),
        "second layer": int(cache.get_seq_length(1)),
        "mask sizes": [tuple(map(int, cache.get_mask_sizes(position, layer))) for layer in range(LAYERS)],
        "max shape": cache.get_max_cache_shape(),
        "compileable": cache.is_compileable,
        "sliding": cache.is_sliding,
        "layers": len(cache),
    }


def assert_equal(ours: Any, theirs: Any) -> None:
    assert facts(ours) == facts(theirs)
    for layer in range(LAYERS):
        torch.testing.assert_close(ours[layer], theirs[layer], atol=0, rtol=0)
    torch.testing.assert_close(list(ours), list(theirs), atol=0, rtol=0)


@pytest.mark.parametrize(("kind", "options"), (("DynamicCache", {}), ("StaticCache", {"max_cache_len": 12})))
def test_updates_return_and_keep_the_same(kind: str, options: dict[str, Any]):
    theirs, ours = both(kind, **options)
    pairs = states(5, 1, 1, 3)
    torch.testing.assert_close(feed(ours, pairs), feed(theirs, pairs), atol=0, rtol=0)
    assert_equal(ours, theirs)
    if kind == "StaticCache":
        assert ours.max_cache_len == theirs.max_cache_len


@pytest.mark.parametrize(
    ("method", "argument"),
    (
        ("crop", 4),
        ("crop", -3),
        ("crop", 20),
        ("reorder_cache", torch.tensor([1, 1])),
        ("batch_repeat_interleave", 3),
        ("batch_select_indices", torch.tensor([1])),
    ),
)
def test_operations_on_a_dynamic_cache_leave_the_same(method: str, argument: Any):
    theirs, ours = both("DynamicCache")
    pairs = states(5, 1, 2)
    for cache in (theirs, ours):
        feed(cache, pairs)
        getattr(cache, method)(argument)
    assert_equal(ours, theirs)
    more = [(keys, values) for keys, values in states(2, rows=theirs[0][0].shape[0])]
    torch.testing.assert_close(feed(ours, more), feed(theirs, more), atol=0, rtol=0)


def test_reordering_a_static_cache_leaves_the_same():
    theirs, ours = both("StaticCache", max_cache_len=9)
    pairs = states(5, 2)
    for cache in (theirs, ours):
        feed(cache, pairs)
        cache.reorder_cache(torch.tensor([1, 0]))
    assert_equal(ours, theirs)
    for cache in (theirs, ours):
        cache.reset()
    assert_equal(ours, theirs)


def test_tuples_go_in_and_come_out_the_same():
    pairs = tuple(states(4, 4))
    theirs, ours = (library.DynamicCache.from_legacy_cache(pairs) for library in (transformers, gptrio))
    torch.testing.assert_close(ours.to_legacy_cache(), theirs.to_legacy_cache(), atol=0, rtol=0)
    wide = tuple(own + cross for own, cross in zip(states(4, 4), states(6, 6), strict=True))
    theirs, ours = (library.EncoderDecoderCache.from_legacy_cache(wide) for library in (transformers, gptrio))
    torch.testing.assert_close(ours.to_legacy_cache(), theirs.to_legacy_cache(), atol=0, rtol=0)
    torch.testing.assert_close(ours[1], theirs[1], atol=0, rtol=0)
    assert ours.is_updated == theirs.is_updated
    assert len(ours) == len(theirs)


@torch.no_grad()
@pytest.mark.parametrize("lengths", ((3, 1, 1, 1, 1, 1, 1), (20, 1, 2, 1), (4, 4, 4, 4)))
def test_a_window_returns_the_same(lengths: tuple[int, ...]):
    theirs, ours = TheirWindowLayer(6), DynamicSlidingWindowLayer(6)
    start = 0
    for keys, values in states(*lengths):
        position = torch.arange(start, start + keys.shape[2])
        assert ours.get_mask_sizes(position) == tuple(map(int, theirs.get_mask_sizes(position)))
        torch.testing.assert_close(ours.update(keys, values), theirs.update(keys, values), atol=0, rtol=0)
        assert ours.get_seq_length() == theirs.get_seq_length()
        start += keys.shape[2]


def test_an_empty_cache_says_the_same_of_itself():
    theirs, ours = both("StaticCache", max_cache_len=9)
    assert facts(ours) == facts(theirs)
    theirs, ours = both("DynamicCache")
    assert (len(ours), ours.get_seq_length(), ours.is_compileable) == (len(theirs), theirs.get_seq_length(), False)


@torch.no_grad()
def test_a_model_takes_the_calls_that_the_reference_documents():
    theirs, ours = models()
    ids = torch.randint(0, 257, (2, 9))
    caches = [
        library.StaticCache(config=model.config, max_cache_len=16)
        for library, model in ((transformers, theirs), (gptrio, ours))
    ]
    for start, end in ((0, 6), (6, 7), (7, 9)):
        expected, got = (
            model(ids[:, start:end], past_key_values=cache, cache_position=torch.arange(start, end), use_cache=True)
            for model, cache in zip((theirs, ours), caches, strict=True)
        )
        torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(caches[1][1], caches[0][1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("from_embeddings", [False, True])
def test_a_static_cache_by_name_has_the_references_capacity(from_embeddings: bool):
    theirs, ours = models()
    ids = torch.randint(0, 257, (2, 9))
    inputs = {"inputs_embeds": theirs.transformer.wte(ids)} if from_embeddings else {"input_ids": ids}
    inputs |= {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "pad_token_id": 0, "eos_token_id": None}
    inputs |= {"cache_implementation": "static", "return_dict_in_generate": True, "disable_compile": True}
    caches = [model.generate(**inputs, do_sample=False).past_key_values for model in (theirs, ours)]
    torch.testing.assert_close(caches[1].layers[0].keys, caches[0].layers[0].keys)
    assert caches[1].get_max_cache_shape() == caches[0].get_max_cache_shape() == 12


def test_positions_past_the_capacity_are_the_references_error():
    for cache in both("StaticCache", max_cache_len=4):
        with pytest.raises(IndexError):
            feed(cache, states(5))
