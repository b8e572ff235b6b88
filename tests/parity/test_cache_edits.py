"""Caches that a script edits (tensors set on layers, rows chosen by lists) against those of transformers 4.56.2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

import gptrio
from gptrio.cache import DynamicSlidingWindowLayer
from gptrio.cache.static_layers import SlidingWindowLayer
from gptrio.testing import assert_close
from tests.parity.generation import FAMILIES, pair_of_models

IDS = torch.tensor([[5, 6, 7, 8, 3], [9, 3, 4, 2, 6], [1, 2, 8, 7, 5]])


def scaled(layer: Any) -> None:
    layer.keys, layer.values = layer.keys * 0.5, layer.values + 0.1


def shortened(layer: Any) -> None:
    layer.keys = layer.keys[:, :, :3]
    layer.values = layer.values[:, :, :3]


def values_first(layer: Any) -> None:
    layer.values = torch.cat([layer.values, layer.values[:, :, :2]], dim=2)
    layer.keys = torch.cat([layer.keys, layer.keys[:, :, :2]], dim=2)


def thinned(layer: Any) -> None:
    keep = torch.tensor([0, 2, 4])
    layer.keys, layer.values = layer.keys[:, :, keep], layer.values[:, :, keep]


def in_place(layer: Any) -> None:
    layer.keys[:, :, 1] = 0.0
    layer.values.mul_(2.0)


EDITS: list[Callable[[Any], None]] = [scaled, shortened, values_first, thinned, in_place]
SELECTIONS: list[Any] = [
    [2, 0], [1], [-1, 0], (0, 2), [True, False, True], torch.tensor([2, 2, 1, 0]), torch.tensor([False, True, True]),
    torch.tensor([1, 0], dtype=torch.int32),
]  # fmt: skip


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.get_seq_length() == theirs.get_seq_length()
    for mine, expected in zip(ours.layers, theirs.layers, strict=True):
        assert_close(mine.keys, expected.keys, 1e-5)
        assert_close(mine.values, expected.values, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_set_on_layers(family: str, edit: Callable[[Any], None]) -> None:
    results = []
    for library, model in zip((gptrio, transformers), pair_of_models(family), strict=True):
        cache = library.DynamicCache()
        model(IDS, past_key_values=cache, use_cache=True)
        for layer in cache.layers:
            edit(layer)
        for _ in range(2):  # the second step appends to what the first has made of the edit
            out = model(IDS[:, :2], past_key_values=cache, use_cache=True)
        results.append((out.logits, cache))
    (ours, mine), (theirs, expected) = results
    assert_close(ours, theirs, 2e-5)
    assert_same(mine, expected)


@torch.no_grad()
def test_tensors_that_are_set_are_never_written_to() -> None:
    cache = gptrio.DynamicCache()
    model = pair_of_models("gpt2")[0]
    model(IDS, past_key_values=cache, use_cache=True)
    buffer = torch.randn(3, *cache.layers[0].keys.shape[1:2], 9, cache.layers[0].keys.shape[3])
    given = buffer[:, :, :4]
    before = buffer.clone()
    for layer in cache.layers:
        layer.keys, layer.values = given, given
    model(IDS, past_key_values=cache, use_cache=True)
    assert torch.equal(buffer, before)
    length = cache.get_seq_length()
    cache.layers[0].keys = cache.layers[0].values = None
    assert cache.layers[0].get_seq_length() == 0
    assert cache.get_seq_length() == length > 0  # of the layers that hold something
    assert cache.layers[0].keys is None


@pytest.mark.parametrize("indices", SELECTIONS, ids=str)
@pytest.mark.parametrize("by_layer", [False, True])
def test_rows_chosen_by_lists_and_masks(indices: Any, by_layer: bool) -> None:
    caches = []
    torch.manual_seed(0)
    states = [(torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)) for _ in range(2)]
    for library in (gptrio, transformers):
        cache = library.DynamicCache.from_legacy_cache(tuple(states))
        for target in cache.layers if by_layer else [cache]:
            target.batch_select_indices(indices)
            target.batch_repeat_interleave(2)
            target.reorder_cache(torch.tensor([1, 0]))
        caches.append(cache)
    assert_same(*caches)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_static_layers_take_the_buffers_of_others(family: str) -> None:
    results = []
    for library, model in zip((gptrio, transformers), pair_of_models(family), strict=True):
        first, second = (library.StaticCache(config=model.config, max_cache_len=12) for _ in range(2))
        model(IDS, past_key_values=first, use_cache=True, cache_position=torch.arange(5))
        model(IDS[:, :1], past_key_values=second, use_cache=True, cache_position=torch.arange(1))
        for source, target in zip(first.layers, second.layers, strict=True):
            target.keys, target.values = source.keys.clone(), source.values.clone()
        assert second.get_seq_length() == 5
        assert second.max_batch_size == 3
        results.append(second)
    assert_same(*results)
    assert isinstance(results[0].layers[0].keys, torch.Tensor)
    with pytest.raises(gptrio.InputError, match="holds \\(batch, heads, 12, head width\\)"):
        results[0].layers[0].keys = results[0].layers[0].keys[:, :, :3]


def test_a_window_counts_what_it_has_let_go() -> None:
    layer = DynamicSlidingWindowLayer(4)
    for _ in range(3):
        layer.update(torch.randn(1, 2, 40, 4), torch.randn(1, 2, 40, 4))
    keys, values = layer.keys, layer.values
    assert keys is not None and values is not None
    layer.keys, layer.values = keys[:, :, -3:] * 2, values[:, :, -3:]
    assert layer.get_seq_length() == 120
    seen, _ = layer.update(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4))
    assert torch.equal(seen[:, :, :3], keys[:, :, -3:] * 2)
    assert layer.get_seq_length() == 121
    ring = SlidingWindowLayer(200, 4)
    ring.update(torch.ones(1, 2, 70, 4), torch.ones(1, 2, 70, 4))
    assert ring.keys is not None
    ring.keys = ring.keys * 2
    assert ring.get_seq_length() == 70


class Own:
    """Keys and values in dictionaries, with what the models of both libraries call, and no call of `Cache.__init__`."""

    is_compileable = False
    is_sliding = (False,)

    def __init__(self) -> None:
        self.states: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.seen = 0

    def update(self, key_states: Any, value_states: Any, layer_idx: int, cache_kwargs: Any = None) -> Any:
        """Append to a layer."""
        self.seen += key_states.shape[2] if layer_idx == 0 else 0
        past = self.states.get(layer_idx, (key_states[:, :, :0], value_states[:, :, :0]))
        new = (key_states, value_states)
        self.states[layer_idx] = tuple(torch.cat(pair, 2) for pair in zip(past, new, strict=True))  # type: ignore[assignment]
        return self.states[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of positions, the same for all layers."""
        return self.seen

    def get_max_cache_shape(self) -> None:
        """No limit."""

    def get_mask_sizes(self, cache_position: torch.Tensor, layer_idx: int) -> tuple[int, int]:
        """As Transformers' masks ask for it, once in each forward."""
        return self.seen + cache_position.shape[0], 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Choose rows."""
        self.states = {i: (k[beam_idx], v[beam_idx]) for i, (k, v) in self.states.items()}


OPTIONS: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_of_ones_own_needs_no_layers(family: str) -> None:
    ours, theirs = pair_of_models(family)
    kinds = [type("OwnCache", (Own, library.Cache), {}) for library in (transformers, gptrio)]
    caches = [kind() for kind in kinds]
    for ids in (IDS, IDS[:, :2]):
        expected, found = (
            model(ids, past_key_values=cache).logits for model, cache in zip((theirs, ours), caches, strict=True)
        )
        assert_close(found, expected, 2e-5)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [1] * 5])
    for options in (OPTIONS, {**OPTIONS, "num_beams": 2}):
        expected, found = (
            model.generate(IDS, attention_mask=mask, past_key_values=kind(), **options)
            for model, kind in zip((theirs, ours), kinds, strict=True)
        )
        assert torch.equal(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_may_return_fewer_keys_than_it_was_given(family: str) -> None:
    models = pair_of_models(family)[::-1]
    found = []
    for library, model in zip((transformers, gptrio), models, strict=True):
        base: Any = library.DynamicCache

        class Sink(base):
            def update(self, *args: Any, **kwargs: Any) -> Any:
                pair = super().update(*args, **kwargs)
                if pair[0].shape[2] <= 6:
                    return pair
                return tuple(torch.cat([states[:, :, :2], states[:, :, -3:]], 2) for states in pair)

        model.set_attn_implementation("eager")
        found.append(model.generate(IDS, past_key_values=Sink(), **OPTIONS))
    assert torch.equal(*found)
