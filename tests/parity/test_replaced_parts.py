"""Blocks and attentions of one's own, written with the arguments that they get in Transformers, and blocks removed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptrio.errors import InputError, UnsupportedError
from gptrio.nn.replaced_parts import call_part
from gptrio.testing import assert_close
from tests.parity.test_model_surface import CAUSAL
from tests.reference import model_pair, token_ids

OPTIONS = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def blocks_of(model: nn.Module) -> Any:
    """The list of blocks."""
    return model.base_model.layers if hasattr(model.base_model, "layers") else model.base_model.h


def holder_of(block: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds the attention of a block, and the attention's name in it."""
    if not hasattr(block, "attn"):
        return block, "attention"
    return (block.attn, "attention") if hasattr(block.attn, "attention") else (block, "attn")


class Written(nn.Module):
    """Attention step by step, over the mask, the cache and the rotary tables that Transformers hands to it."""

    def __init__(self, layer: Any, layer_idx: int, scale: float) -> None:
        super().__init__()
        self.layer, self.layer_idx, self.scale = layer, layer_idx, scale

    def project(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values (B, H, T, D)."""
        layer, heads = self.layer, 4
        if hasattr(layer, "query_key_value"):
            parts = layer.query_key_value(x).view(*x.shape[:2], heads, -1).chunk(3, dim=-1)
            return [part.transpose(1, 2) for part in parts]
        names = ("q_proj", "k_proj", "v_proj")
        parts = layer.c_attn(x).chunk(3, -1) if hasattr(layer, "c_attn") else [getattr(layer, n)(x) for n in names]
        return [part.view(*x.shape[:2], heads, -1).transpose(1, 2) for part in parts]

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        layer_past: Any = None,
        past_key_values: Any = None,
        cache_position: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Map (B, T, C) to (B, T, C)."""
        q, k, v = self.project(hidden_states)
        if position_embeddings is not None:
            q, k = (turned(x, *position_embeddings) for x in (q, k))
        past = layer_past if past_key_values is None else past_key_values
        if past is not None:
            k, v = past.update(k, v, self.layer_idx, {"cache_position": cache_position})
        scores = q @ k.transpose(-1, -2) * self.scale
        causal = torch.arange(k.shape[-2]) <= torch.arange(k.shape[-2])[-q.shape[-2] :, None]
        scores = scores.masked_fill(~causal, torch.finfo(scores.dtype).min)
        if attention_mask is not None:
            scores = scores + attention_mask[..., : k.shape[-2]]
        out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        last = next(getattr(self.layer, n) for n in ("c_proj", "out_proj", "dense") if hasattr(self.layer, n))
        return last(out), None


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions for the first dimensions of (B, H, T, D)."""
    width = cos.shape[-1]
    first, second = x[..., : width // 2], x[..., width // 2 : width]
    rotated = x[..., :width] * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]
    return torch.cat([rotated, x[..., width:]], -1)


class Halved(nn.Module):
    """Hands all keywords on, and halves the result."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        """Half of what the part makes of its input."""
        out, *rest = self.part(hidden_states, **kwargs)
        return out / 2, *rest


class WithMask(Halved):
    """Names one of the keywords that it hands on."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Half of what the part makes of its input."""
        return super().forward(hidden_states, attention_mask=attention_mask, **kwargs)


class Nothing(nn.Module):
    """Attention that adds nothing, and keeps no keys."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        """Zeros (B, T, C)."""
        return torch.zeros_like(hidden_states), None


def replace_attention(model: Any, at: int, kind: str) -> None:
    """Put a module of a kind in the place of an attention."""
    holder, name = holder_of(blocks_of(model)[at])
    layer = getattr(holder, name)
    scale = (
        1.0 if hasattr(layer, "q_proj") else layer.dense.weight.shape[0] ** -0.5 * 2 if hasattr(layer, "dense") else 0
    )
    scale = scale or (layer.c_proj.weight.shape[0] // 4) ** -0.5
    made = {"written": lambda: Written(layer, at % len(blocks_of(model)), scale), "nothing": Nothing}
    made |= {"halved": lambda: Halved(layer), "with mask": lambda: WithMask(layer)}
    setattr(holder, name, made[kind]())


def assert_same(ours: Any, oracle: Any) -> None:
    """Check logits, those of a padded batch, the loss's gradient, and tokens with and without compiled steps."""
    ids = token_ids(2, 7)
    mask = torch.tensor([[1] * 5 + [0] * 2, [1] * 7])
    found, expected = (model(ids, attention_mask=mask, labels=ids) for model in (ours, oracle))
    assert_close(found.logits[mask.bool()], expected.logits[mask.bool()], 2e-5)
    found.loss.backward()
    assert next(ours.base_model.parameters()).grad is not None
    right = oracle.generate(ids, **OPTIONS)
    for options in ({}, {"disable_compile": True}, {"use_cache": False}):
        assert torch.equal(ours.generate(ids, **OPTIONS, **options), right), options


@pytest.mark.parametrize("at", [0, -1])
@pytest.mark.parametrize("kind", ["written", "halved", "with mask", "nothing"])
@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_an_attention_gets_the_keywords_of_the_reference(class_name: str, kind: str, at: int) -> None:
    oracle, ours = model_pair(class_name)
    for model in (oracle, ours):
        replace_attention(model, at, kind)
    assert_same(ours, oracle)


@pytest.mark.parametrize("kind", [Halved, WithMask])
@pytest.mark.parametrize("class_name", [CAUSAL["GPTNeo"], CAUSAL["GPTNeoX"]])  # GPT-2's get theirs by position
def test_a_block_gets_the_keywords_of_the_reference(class_name: str, kind: type[Halved]) -> None:
    oracle, ours = model_pair(class_name)
    for model in (oracle, ours):
        blocks = blocks_of(model)
        blocks[1] = kind(blocks[1])
    assert_same(ours, oracle)


@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_a_forward_set_on_an_attention_may_name_its_input_alone(class_name: str) -> None:
    oracle, ours = model_pair(class_name)
    for model in (oracle, ours):
        layer = getattr(*holder_of(blocks_of(model)[1]))
        layer.forward = lambda hidden_states, inner=layer.forward, **kwargs: inner(hidden_states * 0.5, **kwargs)
    assert_same(ours, oracle)


@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_generate_knows_the_length_of_a_model_without_its_first_block(class_name: str) -> None:
    oracle, ours = model_pair(class_name)
    for model in (oracle, ours):
        del blocks_of(model)[0]
    assert_same(ours, oracle)
    cache = ours(token_ids(), use_cache=True).past_key_values
    assert cache.get_seq_length() == 11
    assert cache.layers[0].get_seq_length() == 0


def append_a_copy(model: Any, layer_idx: int) -> None:
    """Append a copy of the first block, whose attention writes to a layer of the cache."""
    blocks = blocks_of(model)
    blocks.append(copy.deepcopy(blocks[0]))
    setattr(model.config, "num_layers" if hasattr(model.config, "num_layers") else "num_hidden_layers", len(blocks))
    if hasattr(model.config, "attention_layers"):
        model.config.attention_layers = [*model.config.attention_layers, model.config.attention_layers[0]]
    attention = getattr(*holder_of(blocks[-1]))
    setattr(attention, "layer_id" if hasattr(attention, "layer_id") else "layer_idx", layer_idx)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_a_block_may_be_appended(class_name: str, kind: str) -> None:
    oracle, ours = model_pair(class_name)
    for model in (oracle, ours):
        append_a_copy(model, len(blocks_of(model)))
    ids, cache = token_ids(), {"cache_implementation": kind}
    expected = oracle.generate(ids, **OPTIONS)  # whose static cache gives others for GPT-Neo
    assert torch.equal(ours.generate(ids, **cache, **OPTIONS), expected)
    assert_close(ours(ids).logits, oracle(ids).logits)
    append_a_copy(ours, 0)
    for way in (ours, lambda ids: ours.generate(ids, **cache, **OPTIONS)):
        with pytest.raises(InputError, match="two blocks write to layer 0 of the cache; set the layer_idx"):
            way(ids)
    ours.generate(ids, use_cache=False, **OPTIONS)


@pytest.mark.parametrize("cache", ["dynamic", "static", "offloaded"])
def test_a_layer_that_takes_the_number_of_a_local_one_keeps_its_past(cache: str) -> None:
    oracle, ours = model_pair(CAUSAL["GPTNeo"], num_layers=3, attention_types=[[["global", "local", "global"], 1]])
    for model in (oracle, ours):
        blocks = blocks_of(model)
        del blocks[1]
        blocks[1].attn.attention.layer_idx = 1
    ids = token_ids(2, 9)
    assert torch.equal(ours.generate(ids, **OPTIONS, cache_implementation=cache), oracle.generate(ids, **OPTIONS))


class Waves(nn.Module):
    """Sinusoidal positions in place of the table."""

    def forward(self, position_ids: Tensor) -> Tensor:
        """(B, T) to (B, T, C)."""
        return torch.sin(position_ids[..., None] * torch.arange(1.0, 33.0) / 9)


@pytest.mark.parametrize("class_name", [CAUSAL["GPT2"], CAUSAL["GPTNeo"]])
def test_positions_may_come_from_a_function(class_name: str) -> None:
    oracle, ours = model_pair(class_name)
    for model in (oracle, ours):
        model.base_model.wpe = Waves()
    assert_same(ours, oracle)


def test_packed_rows_have_no_keywords() -> None:
    with pytest.raises(UnsupportedError, match=r"takes attention_mask, .*, which packed rows do not have"):
        call_part(Written(None, 0, 1.0), torch.zeros(1, 2, 4), object())  # type: ignore[arg-type]  # no DenseContext
