"""Growing layers: what they copy and what they never touch, in every grad mode; windows and how far back they reach."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gptrio.cache import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from gptrio.cache.protocol import CROP_MARGIN
from gptrio.errors import InputError
from gptrio.testing.tiny import tiny_config
from tests.unit.cache.kinds import random_ids, tiny_model


def states(length: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, 2, length, 4)


@torch.no_grad()
def test_most_steps_write_into_spare_capacity():
    layer, places = DynamicLayer(), set()
    layer.update(states(100), states(100))
    for _ in range(200):
        keys, _ = layer.update(states(1), states(1))
        places.add(keys.data_ptr())
    assert len(places) <= 5


@torch.no_grad()
def test_given_tensors_are_used_as_they_are_and_never_changed():
    keys, values = states(6), states(6)
    before = keys.clone()
    cache = DynamicCache([(keys, values)])
    assert cache[0][0].data_ptr() == keys.data_ptr()
    cache.crop(3)
    cache.update(states(2), states(2), 0)
    assert torch.equal(keys, before)


@torch.no_grad()
@pytest.mark.parametrize("layer", (DynamicLayer(), DynamicSlidingWindowLayer(50)))
def test_tensors_handed_out_are_never_changed(layer: DynamicLayer):
    layer.update(states(6), states(6))
    shown = layer.get_states()
    assert shown is not None
    before = shown[0].clone(), shown[1].clone()
    layer.crop(3)
    layer.update(states(2), states(2))
    torch.testing.assert_close(shown, before, atol=0, rtol=0)


@torch.no_grad()
def test_a_crop_keeps_the_buffer_when_nobody_looked():
    layer = DynamicLayer()
    place = layer.update(states(6), states(6))[0].data_ptr()
    layer.crop(3)
    assert layer.update(states(2), states(2))[0].data_ptr() == place


def test_gradients_flow_through_the_past_and_survive_later_steps():
    model, ids = tiny_model("gpt_neo"), random_ids(2, 30)
    cache = DynamicCache(config=model.config)
    model(ids[:, :20], past_key_values=cache)
    loss = model(ids[:, 20:], past_key_values=cache).logits.square().mean()
    with torch.no_grad():
        cache.crop(25)
        model(ids[:, :3], past_key_values=cache)
    weight = model.get_input_embeddings().weight
    (got,) = torch.autograd.grad(loss, weight)
    (expected,) = torch.autograd.grad(model(ids).logits[:, 20:].square().mean(), weight)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("make", (DynamicLayer, lambda: DynamicSlidingWindowLayer(5)))
@pytest.mark.parametrize("then", (torch.no_grad, torch.enable_grad))
def test_what_inference_mode_stored_can_be_continued_outside_of_it(make: type[DynamicLayer], then: type):
    layer = make()
    with torch.inference_mode():
        layer.update(states(6), states(6))
    kept = layer.get_states()
    assert kept is not None
    with then():
        keys, _ = layer.update(states(1), states(1))
    torch.testing.assert_close(keys[:, :, :-1], kept[0][:, :, -keys.shape[2] + 1 :])
    with torch.inference_mode():
        layer.update(states(1), states(1))
    assert layer.get_seq_length() == 8


@torch.no_grad()
def test_a_window_bounds_the_memory_of_its_layer():
    layer = DynamicSlidingWindowLayer(10)
    for _ in range(1000):
        layer.update(states(1), states(1))
    assert layer._keys is not None
    assert layer._keys.shape[2] <= 2 * (10 + 2 * CROP_MARGIN)
    assert layer.get_seq_length() == 1000


@torch.no_grad()
@pytest.mark.parametrize("back", (1, CROP_MARGIN // 2, CROP_MARGIN))
def test_a_window_can_go_back_at_any_moment(back: int):
    layer, seen = DynamicSlidingWindowLayer(10), states(0)
    layer.update(states(80), states(80))
    for _ in range(200):
        layer.crop(-back)
        seen = layer.update(states(back + 1), states(back + 1))[0]
    assert seen.shape[2] == 9 + back + 1


@torch.no_grad()
def test_a_window_refuses_to_go_back_further_than_it_holds():
    layer = DynamicSlidingWindowLayer(10)
    for _ in range(500):
        layer.update(states(1), states(1))
    with pytest.raises(InputError, match="a window of 10 positions cannot be cropped from 500 to 300"):
        layer.crop(300)
    layer.crop(0)
    assert layer.get_seq_length() == 0
    assert layer.get_mask_sizes(3) == (3, 0)


@torch.no_grad()
def test_windows_survive_the_way_through_tuples():
    model, ids = tiny_model("gpt_neo"), random_ids(2, 190)
    cache = DynamicCache(config=model.config)
    for i in range(0, 180, 20):
        model(ids[:, i : i + 20], past_key_values=cache)
    legacy = cache.to_legacy_cache()
    assert legacy[0][0].shape[2] == 180
    assert legacy[1][0].shape[2] < 180
    again = DynamicCache.from_legacy_cache(legacy, model.config)
    whole = model(ids).logits[:, 180:]
    torch.testing.assert_close(model(ids[:, 180:], past_key_values=again).logits, whole, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(model(ids[:, 180:], past_key_values=legacy).logits, whole, atol=2e-5, rtol=1e-5)
    with pytest.raises(InputError, match=r"pass config=model\.config"):
        DynamicCache.from_legacy_cache(legacy)


def test_layers_know_their_kind_before_they_hold_anything():
    cache = DynamicCache(config=tiny_config("gpt_neo"))
    assert cache.is_sliding == [False, True]
    assert (len(cache), cache.get_seq_length(), cache.to_legacy_cache()) == (0, 0, ())
    assert not cache.is_compileable
    assert cache.get_max_cache_shape() == -1


@torch.no_grad()
def test_room_to_spare_survives_reordering():
    layer = DynamicLayer()
    layer.update(states(6, rows=2), states(6, rows=2))
    layer.map_batch(lambda x: x.index_select(0, torch.tensor([1, 0])))
    assert layer._keys is not None
    place = layer._keys.data_ptr()
    assert layer.update(states(1, rows=2), states(1, rows=2))[0].data_ptr() == place


@torch.no_grad()
def test_a_long_prompt_leaves_its_window_only():
    layer = DynamicSlidingWindowLayer(10)
    layer.update(states(5), states(5))
    keys, _ = layer.update(states(1000), states(1000))
    assert keys.shape[2] == 1005
    assert layer._keys is not None
    assert layer._keys.untyped_storage().nbytes() == (9 + CROP_MARGIN) * 2 * 4 * 4
    assert (layer.get_seq_length(), layer.get_mask_sizes(1)) == (1005, (10, 996))
