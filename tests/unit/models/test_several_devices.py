"""Layers on several devices, moved to and fro by accelerate's hooks; the meta device stands for the second one.

A tensor that stays behind on the CPU meets one without storage there, which torch refuses.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gptrio
from gptrio.nn.context import LAST_POSITION, CrossAttention, DenseContext
from gptrio.nn.masks import AttentionMask
from gptrio.testing import tiny_config

pytest.importorskip("accelerate")
FAMILIES = ("gpt2", "gpt_neo", "gpt_neox")
META = torch.device("meta")
IDS = torch.arange(1, 13).view(2, 6)
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
POSITIONS = (MASK.cumsum(-1) - 1).clamp(min=0)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padding": {"attention_mask": MASK, "position_ids": POSITIONS},
    "ready mask": {"attention_mask": torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()},
    "weights and head mask": {"output_attentions": True, "head_mask": torch.ones(2, 4)},
    "no cache": {"use_cache": False, "output_hidden_states": True},
    "static cache": {"static": True},
}


def split_model(family: str, **config: Any) -> Any:
    """A model whose last block, final norm and head are on the second device."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    torch.manual_seed(0)
    model = gptrio.AutoModelForCausalLM.from_config(tiny_config(family, tie_word_embeddings=False, **config)).eval()
    for part in (model.base_model.blocks[-1], model.base_model.final_norm, model.get_output_embeddings()):
        add_hook_to_module(part.to(META), AlignDevicesHook(execution_device=META))
    return model


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("case", ARGUMENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_stays_on_the_first_device(family: str, case: str, implementation: str) -> None:
    if (family, implementation) == ("gpt_neo", "eager"):
        pytest.skip("torch knows no autocast on the meta device")
    model = split_model(family)
    model.set_attn_implementation(implementation)
    arguments = dict(ARGUMENTS[case])
    if arguments.pop("static", False):
        arguments["past_key_values"] = gptrio.StaticCache(model.config, max_cache_len=16)
    if arguments.get("output_attentions") and implementation == "sdpa":
        pytest.skip("weights are eager's")
    with torch.no_grad():
        out = model(IDS, **arguments)
        assert out.logits.device == META
        assert out.logits.shape == (2, 6, model.config.vocab_size)
        if out.past_key_values is not None:
            (first, _), (last, _) = out.past_key_values[0], out.past_key_values[1]
            assert (first.device.type, last.device.type) == ("cpu", "meta")
            mask = None if case != "padding" else torch.cat([MASK, MASK[:, -1:]], 1)
            positions = {} if mask is None else {"attention_mask": mask, "position_ids": POSITIONS[:, -1:] + 1}
            again = model(IDS[:, :1], past_key_values=out.past_key_values, **positions)
            assert again.logits.shape == (2, 1, model.config.vocab_size)


def test_the_encoders_side_travels() -> None:
    model = split_model("gpt2", add_cross_attention=True)
    states, mask = torch.randn(2, 5, 32), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        out = model(IDS, encoder_hidden_states=states, encoder_attention_mask=mask)
        assert out.logits.device == META
        again = model(IDS[:, :1], encoder_hidden_states=states, past_key_values=out.past_key_values)
    assert again.logits.shape == (2, 1, model.config.vocab_size)


def context() -> DenseContext:
    mask = AttentionMask(
        query_length=3,
        key_length=3,
        device=torch.device("cpu"),
        window=2,
        attention_mask=torch.tensor([[False, True, True]]),
    )
    mask.additive(torch.float32)
    mask.memo["blocks"] = "of the CPU"
    cross = CrossAttention(torch.ones(1, 4, 8), AttentionMask(3, 4, torch.device("cpu"), causal=False))
    rotary = (torch.rand(1, 1, 3, 1, 4), torch.rand(1, 1, 3, 1, 4))
    return DenseContext(
        mask, "eager", head_mask=torch.rand(2, 1, 1, 1, 1), rotary=rotary, cross=cross, selected=LAST_POSITION
    )


def test_a_context_is_made_once_for_each_device() -> None:
    here = context()
    assert here.to("cpu") is here
    there = here.to(META)
    assert here.to("meta", non_blocking=True) is there
    assert there.cache is here.cache
    assert there.selected == LAST_POSITION
    assert there.head_mask is not None and there.rotary is not None and there.cross is not None
    assert here.cross is not None and there.cross.filled is here.cross.filled
    moved = [
        there.head_mask,
        *there.rotary,
        there.cross.states,
        there.mask.attention_mask,
        there.mask.additive(torch.float32),
    ]
    assert {tensor.device for tensor in moved if tensor is not None} == {META}
    assert there.cross.mask.device == there.mask.device == META
    assert there.mask.memo.keys() == {torch.float32}


def test_a_moved_mask_says_the_same() -> None:
    mask = context().mask
    moved = mask.to(torch.device("cpu"))
    assert moved is not mask
    assert torch.equal(moved.additive(torch.float32), mask.additive(torch.float32))
    assert torch.equal(moved.for_layer(2, 1, None).visible(), mask.for_layer(2, 1, None).visible())
