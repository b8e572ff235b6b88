"""Blocks ask an `AttentionContext` for all that lies outside them: another layout is another class, for any family."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from gptrio.cache import DynamicCache
from gptrio.nn.attention import AttentionOptions, attention
from gptrio.nn.context import CrossAttention, DenseContext, KeysAndValues
from gptrio.nn.masks import AttentionMask
from gptrio.nn.rotary import RotaryTables
from gptrio.testing import assert_close
from tests.contract.families import FAMILIES, Family, tokens

ROWS = [5, 21, 1]  # lengths; the second is longer than two windows of GPT-Neo's local layers


@dataclass
class RaggedContext:
    """Rows of different lengths laid end to end as one row, each with its own past."""

    lengths: list[int]
    past: list[dict[int, tuple[Tensor, Tensor]]]
    rotary: RotaryTables | None
    selected: Tensor | slice = field(default_factory=lambda: slice(None))
    need_weights: bool = False
    cross: CrossAttention | None = None
    cache: object = "pages"

    def select(self, x: Tensor) -> Tensor:
        return x[..., self.selected, :]

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layer_idx: int, options: AttentionOptions
    ) -> tuple[Tensor, Tensor | None]:
        results = []
        for past, *new in zip(self.past, *(x.split(self.lengths, 2) for x in (q, k, v)), strict=True):
            own, keys, values = new
            if layer_idx in past:
                keys, values = (torch.cat(pair, 2) for pair in zip(past[layer_idx], (keys, values), strict=True))
            past[layer_idx] = keys, values
            queries, stored = own.shape[2], keys.shape[2]
            mask = AttentionMask(queries, stored, q.device, stored - queries, window=options.window)
            results.append(attention(own, keys, values, mask, options)[0])
        return self.select(torch.cat(results, 1)), None

    def attend_to_encoder(
        self, q: Tensor, keys_and_values: KeysAndValues, layer_idx: int, options: AttentionOptions
    ) -> tuple[Tensor, Tensor | None]:
        raise AssertionError("these models have no encoder")


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@torch.no_grad()
def test_ragged_rows_equal_each_row_alone(family: Family) -> None:
    backbone = family.build("base")
    rows = [tokens(1, length) for length in ROWS]
    past: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in rows]
    start = [0] * len(rows)
    for step in (rows, [tokens(1, 2), tokens(1, 1), tokens(1, 3)]):  # the prompts, then a few tokens each
        lengths = [part.shape[1] for part in step]
        positions = torch.cat([torch.arange(n) + first for n, first in zip(lengths, start, strict=True)])[None]
        x, rotary = backbone.embed_inputs(torch.cat(step, 1), positions)
        last = torch.tensor(lengths).cumsum(0) - 1
        states = backbone.run_blocks(
            x, RaggedContext(lengths, past, rotary), RaggedContext(lengths, past, rotary, selected=last)
        )
        assert states.shape == (1, len(rows), backbone.config.hidden_size)
        if step is not rows:
            rows = [torch.cat(pair, 1) for pair in zip(rows, step, strict=True)]
        for i, row in enumerate(rows):
            assert_close(states[0, i], backbone(row).last_hidden_state[0, -1], 1e-5)
        start = lengths


class ObservedContext(DenseContext):
    """Keeps the queries of every layer, and removes the values of one."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layer_idx: int, options: AttentionOptions
    ) -> tuple[Tensor, Tensor | None]:
        self.queries = {**getattr(self, "queries", {}), layer_idx: q}
        return super().attend(q, k, v * (layer_idx != 1), layer_idx, options)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@torch.no_grad()
def test_an_observer_sees_and_changes_queries_keys_and_values(family: Family) -> None:
    backbone, ids = family.build("base"), tokens(2, 7)
    x, rotary = backbone.embed_inputs(ids, torch.arange(7)[None])
    context = ObservedContext(AttentionMask(7, 7, ids.device), "sdpa", rotary=rotary)
    states = backbone.run_blocks(x, context)
    attention_layer = backbone.blocks[1].self_attention
    width = attention_layer.head_dim
    assert {layer: q.shape for layer, q in context.queries.items()} == dict.fromkeys(
        range(len(backbone.blocks)), (2, attention_layer.num_heads, 7, width)
    )
    removed = torch.ones(len(backbone.blocks), attention_layer.num_heads)
    removed[1] = 0  # a layer without values is a layer without heads
    assert_close(states, backbone(ids, head_mask=removed).last_hidden_state, 1e-5)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@torch.no_grad()
def test_forward_last_is_the_last_position_of_the_forward(family: Family) -> None:
    backbone, ids = family.build("base"), tokens(2, 24)
    cache, expected = DynamicCache(config=backbone.config), backbone(ids).last_hidden_state
    for part, end in zip(ids.split([21, 1, 2], 1), (21, 22, 24), strict=True):
        assert_close(backbone.forward_last(part, cache), expected[:, end - 1 : end], 1e-5)
        assert cache.get_seq_length() == end
