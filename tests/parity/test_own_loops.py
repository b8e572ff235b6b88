"""Decoding loops that callers write with a model's own helpers, against Transformers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import gptrio
from gptrio.testing import tiny_config
from tests.contract.families import FAMILIES, Family, tokens


def decode(model: Any, ids: torch.Tensor, **arguments: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """Five greedy tokens, and the arguments that the loop ends with."""
    arguments = {"attention_mask": torch.ones_like(ids), **arguments}
    arguments, end = model._get_initial_cache_position(ids.shape[1], ids.device, arguments), ids.shape[1] + 5
    while model._has_unfinished_sequences(ids.shape[1] >= end, synced_gpus=False, device=ids.device):
        out = model(**model.prepare_inputs_for_generation(ids, **arguments), return_dict=True)
        arguments = model._update_model_kwargs_for_generation(out, arguments)
        ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], dim=-1)
    return ids, arguments


def pair(family: Family) -> tuple[Any, Any]:
    ours = family.build()
    fields = tiny_config(family.model_type).to_dict()
    kind = getattr(transformers, family.causal_lm)
    theirs = kind(kind.config_class(**fields, attn_implementation="eager")).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.tie_weights()
    return ours, theirs


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_loop_of_ones_own(family: Family, use_cache: bool) -> None:
    ids = tokens(2, 7)
    types = {"token_type_ids": tokens(2, 7)} if family.model_type == "gpt2" else {}
    results = []
    for library, model in zip((gptrio, transformers), pair(family), strict=True):
        cache = {"past_key_values": library.DynamicCache()} if use_cache else {}
        results.append(decode(model, ids, use_cache=use_cache, **cache, **types))
    (found, ends), (expected, others) = results
    assert torch.equal(found, expected)
    assert ends.keys() == others.keys()
    for name in ends.keys() - {"past_key_values", "use_cache"}:
        assert torch.equal(ends[name], others[name]), name
