"""Models in graphs: compiled whole, exported, and copied in every way that Python and torch have."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import gptrio
from gptrio import DynamicCache, GPT2LMHeadModel, GPTNeoConfig, StaticCache
from gptrio.testing import assert_close, tiny_config
from tests.cases import first
from tests.contract.families import Family, tokens
from tests.reference import assert_same_gradients, padded, positions_of

MASK = padded([21, 9], 21, "right")


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "arguments",
    [
        {"attention_mask": MASK, "output_attentions": True, "output_hidden_states": True},
        {"head_mask": torch.ones(2, 4), "position_ids": positions_of(MASK), "return_dict": False},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_compiled_forward_is_one_graph(family: Family, arguments: dict[str, Any]) -> None:
    model = family.build()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    ids = tokens()
    for _ in range(2):
        actual, expected = compiled(input_ids=ids, **arguments), model(input_ids=ids, **arguments)
        assert_close(actual[0], expected[0])
        assert type(actual) is type(expected)


@pytest.mark.parametrize("back_end", first(["sdpa", "eager"]))
def test_compiled_training_step(family: Family, back_end: str) -> None:
    model, plain = family.build(attn_implementation=back_end), family.build(attn_implementation=back_end)
    plain.load_state_dict(model.state_dict())
    ids = tokens()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for one in (compiled, plain):
        one(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert_same_gradients(model, plain)


@torch.no_grad()
def test_compiled_decode_step_is_compiled_once(family: Family) -> None:
    model = family.build()
    counter = torch._dynamo.testing.CompileCounter()
    step = torch.compile(model.forward, fullgraph=True, backend=counter)
    ids = tokens()
    cache = StaticCache(model.config, max_cache_len=32)
    model(input_ids=ids[:, :12], past_key_values=cache, cache_position=torch.arange(12))
    logits = [
        step(input_ids=ids[:, i : i + 1], past_key_values=cache, cache_position=torch.tensor([i])).logits
        for i in range(12, 21)
    ]
    assert counter.frame_count == 1
    assert_close(torch.cat(logits, dim=1), model(input_ids=ids).logits[:, 12:])


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{}, {"attention_mask": MASK}], ids=["plain", "mask"])
def test_export(family: Family, arguments: dict[str, Any]) -> None:
    model = family.build()
    ids = tokens()
    program = torch.export.export(model, (ids,), {"use_cache": False, **arguments})
    other = tokens()
    actual = program.module()(other, use_cache=False, **arguments)
    expected = model(other, use_cache=False, **arguments)
    assert type(actual) is type(expected)
    assert_close(actual.logits, expected.logits)


@torch.no_grad()
def test_export_with_a_cache(family: Family) -> None:
    model = family.build()
    ids = tokens()
    program = torch.export.export(model, (ids[:, :18],))
    past = program.module()(ids[:, :18]).past_key_values
    assert type(past) is DynamicCache
    assert past.get_seq_length() == 18
    assert_close(model(input_ids=ids[:, 18:], past_key_values=past).logits, model(input_ids=ids).logits[:, 18:])


def test_pickle_and_deepcopy(family: Family) -> None:
    model = family.build()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    ids = tokens()
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(twin) is type(model)
        assert_close(twin(input_ids=ids).logits, model(input_ids=ids).logits)
        assert twin.config.to_dict() == model.config.to_dict()
        assert twin.is_gradient_checkpointing
        assert twin.tied_weights() == model.tied_weights()
        table, head = twin.get_input_embeddings().weight, twin.get_output_embeddings().weight
        assert (table is head) == bool(model.tied_weights())
        twin.get_input_embeddings().weight.data.zero_()
    assert model.get_input_embeddings().weight.abs().sum() > 0


def test_state_dict_through_torch_save(family: Family) -> None:
    model, other = family.build(), family.build()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    ids = tokens()
    assert torch.equal(other(input_ids=ids).logits, model(input_ids=ids).logits)


def test_results_are_pickled_and_mapped_over(family: Family) -> None:
    out = family.build()(input_ids=tokens(), use_cache=False, output_hidden_states=True)
    again = pickle.loads(pickle.dumps(out))
    assert torch.equal(again.hidden_states[1], out.hidden_states[1])
    doubled = torch.utils._pytree.tree_map(lambda tensor: 2 * tensor, out)
    assert type(doubled) is type(out)
    assert torch.equal(doubled.logits, 2 * out.logits)


@torch.no_grad()
def test_one_compiled_graph_serves_all_lengths(family: Family) -> None:
    model = family.build()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for length in (21, 29, 40, 57):
        ids = tokens(length=length)
        assert_close(compiled(input_ids=ids, use_cache=False).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("attn_implementation", first(["sdpa", "eager"]))
@pytest.mark.parametrize("strict", first([False, True]))  # dynamo, which traces then, has tests of its own above
def test_exported_graph_serves_all_lengths(family: Family, strict: bool, attn_implementation: str) -> None:
    """Shorter ones than a window too, without a mask; any number of rows; with gradients."""
    model = family.build(attn_implementation=attn_implementation)
    options = {"use_cache": False, "return_dict": False}
    sizes = {0: torch.export.Dim("rows", min=1, max=9), 1: torch.export.Dim("length", min=2, max=64)}
    dynamic = {"input_ids": sizes, "use_cache": None, "return_dict": None}
    arguments = {"input_ids": tokens(), **options}
    exported = torch.export.export(model, (), arguments, dynamic_shapes=dynamic, strict=strict).module()
    for rows, length in ((1, 2), (3, 7), (2, 8), (2, 9), (1, 40), (5, 64)):
        ids = tokens(rows, length)
        assert_close(exported(input_ids=ids, **options)[0], model(input_ids=ids).logits)


def test_exported_step_serves_all_pasts() -> None:
    """A `ShapesCollection` names dynamic dimensions by the identity of keys and values."""
    model, ids = GPT2LMHeadModel(tiny_config("gpt2")).eval().requires_grad_(False), tokens(1, 4)
    cache = model(input_ids=ids, past_key_values=DynamicCache(), use_cache=True).past_key_values
    assert all(layer.keys is layer.keys and layer.get_states()[1] is layer.values for layer in cache.layers)
    sizes, length = torch.export.ShapesCollection(), torch.export.Dim("length", max=40)
    for layer in cache.layers:
        sizes[layer.keys] = sizes[layer.values] = {2: length}
    arguments = {"input_ids": ids, "use_cache": True}
    exported = torch.export.export(model, (), {**arguments, "past_key_values": cache}, dynamic_shapes=sizes).module()
    actual, expected = cache, copy.deepcopy(cache)
    for _ in range(2):
        result, wanted = (
            run(**arguments, past_key_values=past) for run, past in ((exported, actual), (model, expected))
        )
        assert_close(result.logits, wanted.logits)
        actual, expected = result.past_key_values, wanted.past_key_values
    assert actual.get_seq_length() == expected.get_seq_length() == 12


def test_mapped_window_keeps_what_it_dropped() -> None:
    cache = DynamicCache(config=GPTNeoConfig(num_layers=1, attention_types=[[["local"], 1]], window_size=4))
    for length in (90, 3):
        cache.update(torch.ones(1, 1, length, 2), torch.ones(1, 1, length, 2), 0)
    leaves, spec = torch.utils._pytree.tree_flatten(cache)
    again = torch.utils._pytree.tree_unflatten(leaves, spec)
    assert again.get_seq_length() == cache.get_seq_length() == 93
    assert again.layers[0].get_mask_sizes(1) == cache.layers[0].get_mask_sizes(1) == (4, 90)


def test_compilations_are_counted_for_each_class_alone():
    names = ["GPT2Model", "GPT2LMHeadModel", "GPTNeoModel", "GPTNeoForCausalLM", "GPTNeoXModel", "GPTNeoXForCausalLM"]
    forwards = [getattr(gptrio, name).forward for name in names]
    assert len({forward.__code__ for forward in forwards}) == len(names)
    assert forwards[0].__code__.co_name == "GPT2Model_forward"
