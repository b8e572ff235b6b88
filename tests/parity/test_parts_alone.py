"""Blocks and attentions called one by one, with the arguments of the reference: layer by layer, with a changed mask."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import gptrio
from gptrio.errors import InputError, UnsupportedError
from gptrio.nn.packed_context import PackedContext
from gptrio.testing import assert_close
from tests.parity.test_model_surface import CAUSAL
from tests.parity.test_replaced_parts import OPTIONS, blocks_of, holder_of
from tests.reference import model_pair, token_ids

FAMILIES = pytest.mark.parametrize("class_name", CAUSAL.values())


class Caught(Exception):
    """Ends a forward at its first block."""


class Catcher(nn.Module):
    """Stands in place of the first block, and keeps what it is given, as tools do that quantize layer by layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.caught: list[tuple[Tensor, dict[str, Any]]] = []

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Keep the input and end the forward."""
        self.caught.append((hidden_states, kwargs))
        raise Caught


def rotary(model: Any, x: Tensor, start: int = 0) -> dict[str, Any]:
    """Rotary tables of the positions from `start` on, for a model that has them."""
    if not hasattr(model.base_model, "rotary_emb"):
        return {}
    positions = torch.arange(start, start + x.shape[1])[None]
    return {"position_embeddings": model.base_model.rotary_emb(x, positions)}


def attention_of(model: Any, at: int) -> Any:
    """The attention of a block."""
    return getattr(*holder_of(blocks_of(model)[at]))


def causal(length: int) -> Tensor:
    """(1, 1, T, T) mask to add to the scores."""
    return torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]


@FAMILIES
def test_parts_run_alone(class_name: str) -> None:
    oracle, ours = model_pair(class_name)
    x, mask = torch.randn(2, 7, 32), causal(7)
    mask[..., 1] = torch.finfo(torch.float32).min  # no query sees the second key
    for at in (0, 1):
        found, expected = (
            (blocks_of(model)[at](x, attention_mask=mask, output_attentions=True, **rotary(model, x)))
            for model in (ours, oracle)
        )
        assert_close(found[0], expected[0], 2e-5)
        assert_close(found[1], expected[1], 2e-5)
        found, expected = (
            attention_of(model, at)(hidden_states=x, attention_mask=mask, **rotary(model, x))
            for model in (ours, oracle)
        )
        assert_close(found[0], expected[0], 2e-5)
    head_mask = torch.tensor([1.0, 0.0, 1.0, 1.0])[None, :, None, None]
    if "NeoX" not in class_name:  # whose eager attention has none
        found, expected = (blocks_of(model)[1](x, head_mask=head_mask)[0] for model in (ours, oracle))
        assert_close(found, expected, 2e-5)


@FAMILIES
def test_a_loop_over_the_blocks_gives_the_logits_of_the_model(class_name: str) -> None:
    _, model = model_pair(class_name, "sdpa")
    ids, backbone = token_ids(), model.base_model
    if hasattr(backbone, "rotary_emb"):
        x, norm = backbone.embed_in(ids), backbone.final_layer_norm
    else:
        x, norm = backbone.wte(ids) + backbone.wpe(torch.arange(ids.shape[1])), backbone.ln_f
    tables = rotary(model, x)
    for block in blocks_of(model):
        (x, *_) = block(x, **tables)
    assert_close(model.get_output_embeddings()(norm(x)), model(ids).logits, 2e-5)


@FAMILIES
@pytest.mark.parametrize("kind", ["DynamicCache", "StaticCache"])
def test_parts_append_to_a_cache(class_name: str, kind: str) -> None:
    _, model = model_pair(class_name, "sdpa")
    whole = torch.randn(2, 9, 32)
    name = "past_key_values" if class_name.startswith("GPT2") else "layer_past"
    for library in (gptrio, transformers) if kind == "DynamicCache" else (gptrio,):
        cache = library.DynamicCache() if kind == "DynamicCache" else gptrio.StaticCache(model.config, 12)
        for block in blocks_of(model):
            first, rest = (
                block(
                    x,
                    **{name: cache},
                    cache_position=torch.arange(start, start + x.shape[1]),
                    **rotary(model, x, start),
                )
                for start, x in ((0, whole[:, :6]), (6, whole[:, 6:]))
            )
            expected = block(whole, **rotary(model, whole))[0]
            assert_close(torch.cat([first[0], rest[0]], 1), expected, 2e-5)
        assert cache.get_seq_length(1) == 9


@FAMILIES
@pytest.mark.parametrize("hand_all_on", [False, True])
def test_a_block_repeats_what_was_caught_at_it(class_name: str, hand_all_on: bool) -> None:
    oracle, ours = model_pair(class_name)
    if class_name.startswith("GPT2"):  # gives most arguments by position, which a catcher of keywords does not take
        oracle = ours
    ids, mask = token_ids(2, 7), torch.tensor([[1] * 5 + [0] * 2, [1] * 7])
    results = []
    for model in (oracle, ours):
        blocks = blocks_of(model)
        expected = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[1]
        catcher = blocks[0] = Catcher(blocks[0])
        with pytest.raises(Caught):
            model(ids, attention_mask=mask, use_cache=False)
        blocks[0] = catcher.inner
        (x, kwargs), names = catcher.caught[0], inspect.signature(blocks[0].forward).parameters
        assert {"attention_mask", "position_ids"} <= set(kwargs) if model is ours else True
        given = {"attention_mask": kwargs["attention_mask"], **rotary(model, x)}
        if hand_all_on:
            given = {name: value for name, value in kwargs.items() if name in names}
        for _ in range(2):
            results.append(blocks[0](x, **given)[0])
            assert_close(results[-1][mask.bool()], expected[mask.bool()], 2e-5)
    assert_close(results[0][mask.bool()], results[-1][mask.bool()], 2e-5)


def knocked_out(forward: Callable[..., Any], wraps: bool) -> Callable[..., Any]:
    """A forward of an attention in which no later token sees the first one (Geva et al., 2023)."""

    def changed(*args: Any, **kwargs: Any) -> Any:
        length = args[0].shape[1]
        mask = torch.tril(torch.ones(length, length))
        mask[1:, 0] = 0
        kwargs["attention_mask"] = ((1 - mask) * torch.finfo(torch.float32).min)[None, None]
        return forward(*args, **kwargs)

    return functools.wraps(forward)(changed) if wraps else changed


@FAMILIES
@pytest.mark.parametrize("way", ["wrapped", "replaced", "hook"])
def test_a_mask_given_to_an_attention_counts(class_name: str, way: str) -> None:
    oracle, ours = model_pair(class_name)
    ids = token_ids(2, 7)
    plain = ours(ids).logits
    for model in (oracle, ours):
        attention = attention_of(model, 1)
        if way == "hook":

            def hook(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
                assert "attention_mask" in kwargs
                return args, {**kwargs, "attention_mask": causal(7) * (torch.arange(7) > 0) - 1e9 * torch.eye(7)[3]}

            attention.register_forward_pre_hook(hook, with_kwargs=True)
        else:
            attention.forward = knocked_out(attention.forward, way == "wrapped")
    found, expected = ours(ids).logits, oracle(ids).logits
    assert_close(found, expected, 2e-5)
    assert not torch.allclose(found, plain, atol=1e-3)


@FAMILIES
def test_hooks_that_see_keywords_change_no_token(class_name: str) -> None:
    _, ours = model_pair(class_name, "sdpa")
    ids, seen = token_ids(2, 7), []
    expected = ours.generate(ids, **OPTIONS)
    for block in blocks_of(ours):
        block.register_forward_hook(lambda _, args, kwargs, output: seen.append(set(kwargs)), with_kwargs=True)
    assert torch.equal(ours.generate(ids, **OPTIONS), expected)
    assert all({"attention_mask", "position_ids", "use_cache"} <= names for names in seen)


def test_cross_attention_runs_alone() -> None:
    oracle, ours = model_pair("GPT2LMHeadModel", add_cross_attention=True)
    x, states = torch.randn(2, 5, 32), torch.randn(2, 4, 32)
    bias = torch.where(torch.arange(4) < 3, 0.0, torch.finfo(torch.float32).min)[None, None, None]
    given = {"encoder_hidden_states": states, "encoder_attention_mask": bias}
    found, expected = (blocks_of(model)[1](x, **given)[0] for model in (ours, oracle))
    assert_close(found, expected, 2e-5)


def test_parts_alone_say_what_they_lack() -> None:
    _, ours = model_pair("GPTNeoXForCausalLM")
    with pytest.raises(InputError, match="needs position_embeddings"):
        blocks_of(ours)[0](torch.zeros(1, 2, 32))
    context = PackedContext.of_lengths([2], "sdpa", None, torch.device("cpu"))
    with pytest.raises(UnsupportedError, match="packed rows take no attention_mask"):
        blocks_of(ours)[0](torch.zeros(1, 2, 32), context, attention_mask=causal(2))
