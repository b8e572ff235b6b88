"""Static caches: one compiled graph for every length, one buffer for ever, and clear errors at the end of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from gptrio.cache import DynamicCache, SlidingWindowLayer, StaticCache, StaticLayer, make_cache
from gptrio.errors import InputError
from gptrio.models.gpt2 import GPT2LMHeadModel
from gptrio.testing.tiny import tiny_config
from tests.cases import first, where
from tests.unit.cache.kinds import CAPACITY, FAMILIES, in_chunks, random_ids, tiny_model


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: nn.Module, backend: str = "eager") -> tuple[Any, CompileCounterWithBackend]:
    counter = CompileCounterWithBackend(backend)
    return torch.compile(model, fullgraph=True, backend=counter), counter


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "mode"),
    where(lambda family, mode: family == "gpt_neo" or mode == "padded", FAMILIES, ("by_position", "untold", "padded")),
)
def test_a_step_is_compiled_once_whatever_the_length(family: str, mode: str):
    model, ids = tiny_model(family), random_ids(2, 130)
    mask = torch.ones(2, CAPACITY, dtype=torch.long)
    mask[0, :6] = 0 if mode == "padded" else 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    whole = model(ids, attention_mask=mask[:, :130], position_ids=positions[:, :130]).logits
    cache = StaticCache(model.config, CAPACITY)
    model(ids[:, :20], attention_mask=mask, position_ids=positions[:, :20], past_key_values=cache)
    step, counter = compiled(model)
    for i in range(20, 130):
        inputs: dict[str, Tensor] = {}
        if mode != "untold":
            inputs["cache_position"] = torch.tensor([i])
        if mode == "padded":
            inputs |= {"attention_mask": mask, "position_ids": positions[:, i : i + 1]}
        logits = step(ids[:, i : i + 1], past_key_values=cache, **inputs).logits
        torch.testing.assert_close(logits[:, 0], whole[:, i], atol=2e-5, rtol=1e-5)
    assert counter.frame_count == 1
    assert cache.get_seq_length() == 130


@torch.no_grad()
@pytest.mark.parametrize("family", first(["gpt_neo", "gpt2", "gpt_neox"]))
def test_eager_and_compiled_calls_may_take_turns(family: str):
    model, ids = tiny_model(family), random_ids(1, 150)
    whole = model(ids).logits
    cache = StaticCache(model.config, CAPACITY)
    step, counter = compiled(model, "aot_eager")
    for start in range(0, 150, 30):
        torch.testing.assert_close(
            in_chunks(model, ids, cache, [25]), whole[:, start : start + 25], atol=2e-5, rtol=1e-5
        )
        for i in range(start + 25, start + 30):
            logits = step(ids[:, i : i + 1], past_key_values=cache, cache_position=torch.tensor([i])).logits
            torch.testing.assert_close(logits[:, 0], whole[:, i], atol=2e-5, rtol=1e-5)
        if start == 60:
            cache.crop(-10)
            in_chunks(model, ids, cache, [10])
    assert counter.frame_count == 1


@torch.no_grad()
def test_a_compiled_prefill_makes_the_buffers_itself():
    model, ids = tiny_model("gpt_neo"), random_ids(1, 90)
    step, _ = compiled(model)
    cache = StaticCache(model.config, CAPACITY)
    logits = step(ids, past_key_values=cache, cache_position=torch.arange(90)).logits
    torch.testing.assert_close(logits, model(ids).logits, atol=2e-5, rtol=1e-5)
    assert cache.get_seq_length() == 90


def test_buffers_stay_where_they_are():
    model = tiny_model("gpt_neo")
    cache = StaticCache(model.config, CAPACITY, max_batch_size=2, device="cpu", dtype=torch.float32)
    places = [x.data_ptr() for i in range(2) for x in cache[i]]
    in_chunks(model, random_ids(2, 120), cache, [100, 1, 1, 18])
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.crop(-2)
    cache.reset()
    in_chunks(model, random_ids(2, 5), cache, [5], by_position=True)
    assert [x.data_ptr() for i in range(2) for x in cache[i]] == places


def test_local_layers_are_rings_and_small_ones_are_whole():
    config = tiny_config("gpt_neo")
    cache = StaticCache(config, CAPACITY)
    assert [type(layer) for layer in cache.layers] == [StaticLayer, SlidingWindowLayer]
    assert cache.is_sliding == [False, True]
    assert cache.is_compileable
    assert [type(layer) for layer in StaticCache(config, 40).layers] == [StaticLayer, StaticLayer]
    assert not StaticCache(config, CAPACITY, offloading=True).is_compileable


def test_buffers_made_in_inference_mode_can_be_written_outside_of_it():
    model, ids = tiny_model("gpt_neo"), random_ids(1, 30)
    cache = StaticCache(model.config, CAPACITY)
    with torch.inference_mode():
        model(ids[:, :20], past_key_values=cache)
    torch.testing.assert_close(in_chunks(model, ids, cache, [10]), model(ids).logits[:, 20:], atol=2e-5, rtol=1e-5)


def test_gradients_flow_through_the_past():
    def loss(cache: Any) -> Tensor:
        first = model(ids[:, :20], past_key_values=cache)
        return model(ids[:, 20:], past_key_values=first.past_key_values).logits.square().mean()

    model, ids = tiny_model("gpt_neo"), random_ids(1, 30)
    weight = model.get_input_embeddings().weight
    (expected,) = torch.autograd.grad(loss(DynamicCache()), weight)
    (got,) = torch.autograd.grad(loss(StaticCache(model.config, CAPACITY)), weight)
    torch.testing.assert_close(got, expected)


@torch.no_grad()
@pytest.mark.parametrize("make", (lambda: StaticLayer(20), lambda: SlidingWindowLayer(20, 3)))
@pytest.mark.parametrize("by_position", (False, True))
def test_positions_past_the_end_are_refused(make: Any, by_position: bool):
    layer, states = make(), torch.randn(1, 2, 21, 4)
    position = {"cache_position": torch.arange(21)} if by_position else None
    with pytest.raises(InputError, match="21 positions, but the cache was made for 20; make it with max_cache_len=21"):
        layer.update(states, states, position)


@torch.no_grad()
def test_positions_with_a_gap_are_refused_and_repeated_ones_replace():
    layer, states = StaticLayer(20), torch.randn(1, 2, 5, 4)
    layer.update(states, states)
    with pytest.raises(InputError, match="starts at 7, but the static cache holds 5 positions"):
        layer.update(states, states, {"cache_position": torch.arange(7, 12)})
    layer.update(-states, -states, {"cache_position": torch.arange(3, 8)})
    assert layer.get_seq_length() == 8
    torch.testing.assert_close(layer._keys[:, :, 3:8], -states)


@torch.no_grad()
def test_a_ring_refuses_to_go_back_further_than_it_holds():
    layer, states = SlidingWindowLayer(500, 10), torch.randn(1, 2, 300, 4)
    layer.update(states, states)
    layer.crop(240)
    with pytest.raises(InputError, match="a window of 10 positions cannot be cropped from 240 to 230"):
        layer.crop(230)
    layer.crop(0)
    assert layer.get_seq_length() == 0


def test_an_impossible_size_is_refused():
    with pytest.raises(InputError, match="max_cache_len=0 is not possible"):
        StaticCache(tiny_config("gpt2"), 0)


@torch.no_grad()
def test_a_step_with_cross_attention_is_compiled_once():
    model = GPT2LMHeadModel(tiny_config(add_cross_attention=True)).eval()
    states, ids = torch.randn(2, 9, 32), random_ids(2, 30)
    whole = model(ids, encoder_hidden_states=states).logits
    cache = make_cache("static", model.config, 2, 40, "cpu", torch.float32)
    model(ids[:, :10], encoder_hidden_states=states, past_key_values=cache)
    step, counter = compiled(model)
    for i in range(10, 30):
        logits = step(ids[:, i : i + 1], encoder_hidden_states=states, past_key_values=cache).logits
        torch.testing.assert_close(logits[:, 0], whole[:, i])
    assert counter.frame_count == 1


def test_the_rows_of_the_buffers_are_told():
    cache = StaticCache(tiny_config("gpt2"), 8)
    assert cache.max_batch_size is None
    cache.early_initialization(3, 4, 8, torch.float32, "cpu")
    assert cache.max_batch_size == 3
