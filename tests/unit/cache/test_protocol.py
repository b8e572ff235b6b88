"""Every layer against the obvious one, which concatenates: appending, reordering, repeating, selecting, cropping."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gptrio.cache import (
    Cache,
    CacheLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    StaticCache,
)
from gptrio.cache.offloaded import OffloadedLayer, Transfers
from gptrio.cache.quantized import QuantizedLayer
from gptrio.cache.static_layers import SlidingWindowLayer, StaticLayer
from gptrio.errors import InputError
from gptrio.generation.prefix import PrefixLayer
from gptrio.testing.tiny import tiny_config
from tests.cases import first
from tests.unit.cache.kinds import CACHES

WINDOW, CAPACITY, HEADS, WIDTH = 9, 600, 2, 6


class ObviousLayer:
    """The whole past, concatenated."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)


def states(rows: int, length: int) -> Tensor:
    return torch.randn(rows, HEADS, length, WIDTH)


def a_prefix(rows: int) -> PrefixLayer:
    torch.manual_seed(5)
    return PrefixLayer(states(1, 10), states(1, 10), rows)


LAYERS: dict[str, Callable[[], CacheLayer]] = {
    "dynamic": DynamicLayer,
    "window": lambda: DynamicSlidingWindowLayer(WINDOW),
    "static": lambda: StaticLayer(CAPACITY),
    "ring": lambda: SlidingWindowLayer(CAPACITY, WINDOW),
    "short ring": lambda: SlidingWindowLayer(CAPACITY, 2),
    "offloaded": lambda: OffloadedLayer(Transfers()),
    "offloaded window": lambda: OffloadedLayer(Transfers(), WINDOW),
    "offloaded static": lambda: OffloadedLayer(Transfers(), None, CAPACITY),
    "prefix": lambda: a_prefix(2),
    "quantized": lambda: QuantizedLayer(8, q_group_size=4, residual_length=6),
    "quantized at once": lambda: QuantizedLayer(8, q_group_size=3, residual_length=0),
}


def check_update(layer: CacheLayer, obvious: ObviousLayer, length: int, by_position: bool) -> None:
    """Append to both, and compare what the last queries may see."""
    rows, start = obvious.keys.shape[0], obvious.keys.shape[2]
    keys, values = states(rows, length), states(rows, length)
    obvious.update(keys, values)
    by_position = by_position and layer.is_compileable
    position = torch.arange(start, start + length)
    count, offset = layer.get_mask_sizes(position if by_position else length)
    held = layer.key_positions(position) if by_position else None
    seen = layer.update(keys, values, {"cache_position": position if by_position else None})
    assert seen[0].shape[2] == seen[1].shape[2] == count
    held = torch.arange(offset, offset + count) if held is None else held
    window = getattr(layer, "window", None) or getattr(layer, "sliding_window", None) or start + length
    wanted = torch.arange(max(start - window + 1, 0), start + length)
    slots = torch.stack([(held == position).nonzero()[0, 0] for position in wanted])
    torch.testing.assert_close(seen[0][:, :, slots], obvious.keys[:, :, wanted], atol=0.03, rtol=0)
    torch.testing.assert_close(seen[1][:, :, slots], obvious.values[:, :, wanted], atol=0.03, rtol=0)
    assert layer.get_seq_length() == start + length


def random_operation(layer: CacheLayer, obvious: ObviousLayer, by_position: bool) -> None:
    rows, length = obvious.keys.shape[0], obvious.keys.shape[2]
    match random.choice(("update", "update", "update", "select", "repeat", "crop", "copy")):
        case "select":
            index = torch.randint(0, rows, (random.randint(1, 3),))
            layer.map_batch(lambda x: x.index_select(0, index))
            obvious.keys, obvious.values = obvious.keys[index], obvious.values[index]
        case "repeat" if rows < 4:
            layer.map_batch(lambda x: x.repeat_interleave(2, dim=0))
            obvious.keys, obvious.values = (x.repeat_interleave(2, dim=0) for x in (obvious.keys, obvious.values))
        case "crop":
            kept = max(length - random.randint(0, 6), 0)
            layer.crop(random.choice((kept, kept - length)) if kept < length else kept)
            obvious.keys, obvious.values = obvious.keys[:, :, :kept], obvious.values[:, :, :kept]
        case _:
            check_update(layer, obvious, random.choice((1, 1, 1, 2, 5, 70)), by_position)


@torch.no_grad()
@pytest.mark.parametrize("by_position", (False, True), ids=("appending", "at cache_position"))
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("seeds", first([range(3), range(3, 8)]), ids=str)
def test_random_operations_leave_what_the_obvious_layer_has(name: str, by_position: bool, seeds: range):
    for seed in seeds:
        random.seed(seed)
        layer = LAYERS[name]()
        start = layer.get_states() or (states(2, 0), states(2, 0))
        obvious = ObviousLayer(*(x.clone() for x in start))
        check_update(layer, obvious, random.choice((1, 12, 100)), by_position)
        for _ in range(30):
            if obvious.keys.shape[2] < CAPACITY - 70:
                random_operation(layer, obvious, by_position)
        check_update(layer, obvious, 3, by_position)
        kept = layer.get_states()
        assert kept is not None
        last = obvious.keys[:, :, obvious.keys.shape[2] - kept[0].shape[2] :]
        torch.testing.assert_close(kept[0], last, atol=0.03, rtol=0)


def filled(kind: str, rows: int = 2, length: int = 30) -> Cache:
    config = tiny_config("gpt_neo")
    cache = CACHES[kind](config)
    torch.manual_seed(3)
    with torch.no_grad():
        for layer in range(config.num_hidden_layers):
            cache.update(torch.randn(rows, 4, length, 8), torch.randn(rows, 4, length, 8), layer)
    return cache


def assert_same(a: Cache, b: Cache) -> None:
    for ours, theirs in zip(a.to_legacy_cache(), b.to_legacy_cache(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert (len(a), a.get_seq_length(), a.get_seq_length(1)) == (len(b), b.get_seq_length(), b.get_seq_length(1))


@pytest.mark.parametrize("duplicate", (copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))))
@pytest.mark.parametrize("kind", CACHES)
def test_a_copy_is_equal_and_lives_its_own_life(kind: str, duplicate: Callable[[Cache], Cache]):
    cache, untouched = filled(kind), filled(kind)
    twin = duplicate(cache)
    assert_same(twin, cache)
    with torch.no_grad():
        twin.crop(-3)
        twin.update(torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 8), 0)
        twin.reorder_cache(torch.tensor([1, 0]))
    assert_same(cache, untouched)
    assert twin.get_seq_length() == 32


@pytest.mark.parametrize("kind", CACHES)
def test_reordering_selecting_and_repeating_move_whole_rows(kind: str):
    before = filled(kind).to_legacy_cache()
    for operate, rows in (
        (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
        (lambda cache: cache.batch_repeat_interleave(3), [0, 0, 0, 1, 1, 1]),
    ):
        cache = filled(kind)
        operate(cache)
        for (keys, values), (old_keys, old_values) in zip(cache.to_legacy_cache(), before, strict=True):
            torch.testing.assert_close(keys, old_keys[rows])
            torch.testing.assert_close(values, old_values[rows])


@pytest.mark.parametrize("kind", CACHES)
def test_a_reset_cache_starts_anew(kind: str):
    cache = filled(kind)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.to_legacy_cache() == ()
    keys, values = torch.randn(2, 4, 4, 8), torch.randn(2, 4, 4, 8)
    with torch.no_grad():
        seen = cache.update(keys, values, 0)
    torch.testing.assert_close(seen, (keys, values))


@pytest.mark.parametrize("kind", CACHES)
def test_a_cache_refuses_another_batch(kind: str):
    with torch.no_grad(), pytest.raises(InputError, match="made for this batch"):
        filled(kind).update(torch.randn(3, 4, 1, 8), torch.randn(3, 4, 1, 8), 0)


@pytest.mark.parametrize("kind", CACHES)
def test_indexing_iterating_and_counting_meet_every_layer(kind: str):
    cache = filled(kind)
    assert len(cache) == 2
    assert [keys.shape[:2] for keys, _ in cache] == [(2, 4), (2, 4)]
    torch.testing.assert_close(cache[1], list(cache)[1])
    with pytest.raises(IndexError):
        cache[2]
    assert "30 positions" in repr(cache)


def test_a_cache_of_fewer_layers_is_refused():
    cache = StaticCache(tiny_config("gpt2", num_hidden_layers=1), 8)
    with pytest.raises(InputError, match="have 1 layers, but the model asks for layer 1"):
        cache.update(states(1, 1), states(1, 1), 1)


def test_encoder_decoder_caches_act_on_both_sides():
    own, cross = DynamicCache([(states(2, 3), states(2, 3))]), DynamicCache([(states(2, 5), states(2, 5))])
    cache = EncoderDecoderCache(own, cross)
    before = cache.to_legacy_cache()
    cache.reorder_cache(torch.tensor([1, 0]))
    for new, old in zip(cache.to_legacy_cache()[0], before[0], strict=True):
        torch.testing.assert_close(new, old[[1, 0]])
    cache.crop(2)
    assert [x.shape[2] for x in cache[0]] == [2, 2, 5, 5]
    again = EncoderDecoderCache.from_legacy_cache(cache.to_legacy_cache())
    torch.testing.assert_close(again[0], cache[0])
    assert again.is_updated == {0: True}
    twin = pickle.loads(pickle.dumps(cache))
    torch.testing.assert_close(twin[0], cache[0])
    cache.reset()
    assert cache.is_updated == {0: False}
    assert cache.get_seq_length() == 0


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_only_dynamic_layers_let_a_compiled_step_append(name: str):
    layer = LAYERS[name]()
    layer.update(states(2, 5), states(2, 5))
    is_dynamic = isinstance(layer, DynamicLayer)
    assert layer.can_reserve(2, HEADS, WIDTH, torch.float32) is is_dynamic
    assert not layer.can_reserve(3, HEADS, WIDTH, torch.float32)
    assert not layer.can_reserve(2, HEADS, WIDTH, torch.bfloat16)
    if isinstance(layer, DynamicLayer):
        keys, values, slot = layer.reserve()
        assert slot == 5 and layer.is_unchanged(keys, values, 6)
        layer.crop(4)
        assert not layer.is_unchanged(keys, values, 6)
    else:
        assert not layer.is_unchanged(states(2, 5), states(2, 5), 5)


def test_a_subclass_that_appends_in_its_own_way_is_left_to_do_so():
    class Own(DynamicLayer):
        pass

    layer = Own()
    layer.update(states(1, 3), states(1, 3))
    assert not layer.can_reserve(1, HEADS, WIDTH, torch.float32)


def test_tensors_that_may_have_no_memory_are_left_to_torch():
    class Own(torch.Tensor):
        pass

    layer = DynamicCache([(states(1, 3), states(1, 3).as_subclass(Own))]).layers[0]
    assert not layer.can_reserve(1, HEADS, WIDTH, torch.float32)
