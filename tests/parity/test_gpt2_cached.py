"""GPT-2 with a past and with an encoder, against Transformers' eager path."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gptrio.testing import assert_close
from tests.reference import (
    assert_same_gradients,
    assert_same_output,
    assert_same_training_step,
    model_pair,
    padded,
    positions_of,
    run_in_chunks,
    task_inputs,
    token_ids,
)

pytestmark = pytest.mark.filterwarnings("ignore:the batch is padded on the left")
FLAGS: list[dict[str, Any]] = [
    {},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"reorder_and_upcast_attn": True},
    {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
]


@pytest.fixture(params=["eager", "sdpa"])
def back_end(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("chunks", [[11], [10, 1], [1] * 11, [5, 1, 3, 2], [2, 9]], ids=str)
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_cached_in_uneven_chunks(chunks: list[int], side: str | None, back_end: str) -> None:
    oracle, ours = model_pair("GPT2LMHeadModel", back_end, scale_attn_by_inverse_layer_idx=True)
    ids = token_ids(3)
    mask = None if side is None else padded([11, 8, 5], 11, side)
    real = torch.ones(3, 11, dtype=torch.bool) if mask is None else mask.bool()
    actual = run_in_chunks(ours, ids, chunks, mask)
    assert_close(actual[real], run_in_chunks(oracle, ids, chunks, mask)[real])
    extra = {} if mask is None else {"attention_mask": mask, "position_ids": positions_of(mask)}
    assert_close(actual[real], oracle(ids, **extra).logits[real])


def test_cache_under_autograd(back_end: str) -> None:
    oracle, ours = model_pair("GPT2LMHeadModel", back_end)
    ids = token_ids()
    for model in (oracle, ours):
        past = model(ids[:, :6]).past_key_values
        model(ids[:, 6:], past_key_values=past, labels=ids[:, 6:]).loss.backward()
    assert_same_gradients(ours, oracle)


@torch.no_grad()
def test_legacy_tuples(back_end: str) -> None:
    oracle, ours = model_pair("GPT2LMHeadModel", back_end)
    ids = token_ids()
    past = oracle(ids[:, :6]).past_key_values.to_legacy_cache()
    actual = ours(ids[:, :6]).past_key_values.to_legacy_cache()
    for one, other in zip(actual, past, strict=True):
        assert_close(one[0], other[0])
        assert_close(one[1], other[1])
    before = [tensor.clone() for layer in past for tensor in layer]
    assert_close(ours(ids[:, 6:], past_key_values=past).logits, oracle(ids).logits[:, 6:])
    assert_close(ours(ids[:, 6:], past_key_values=actual, use_cache=False).logits, oracle(ids).logits[:, 6:])
    after = [tensor for layer in past for tensor in layer]
    assert all(torch.equal(one, other) for one, other in zip(after, before, strict=True))


@torch.no_grad()
def test_4d_mask_over_a_past(back_end: str) -> None:
    oracle, ours = model_pair("GPT2LMHeadModel", back_end)
    ids = token_ids()
    mask = torch.full((11, 11), torch.finfo(torch.float32).min).triu(1)
    mask[7:, 2] = torch.finfo(torch.float32).min
    mask = mask[None, None]
    expected = oracle(ids, attention_mask=mask).logits[:, 6:]
    past = ours(ids[:, :6], attention_mask=mask[..., :6, :6]).past_key_values
    assert_close(ours(ids[:, 6:], attention_mask=mask[..., 6:, :], past_key_values=past).logits, expected)


@pytest.mark.parametrize("class_name", ["GPT2Model", "GPT2LMHeadModel"])
@pytest.mark.parametrize("encoder_mask", [None, "2D", "3D"])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_cross_attention(class_name: str, encoder_mask: str | None, flags: dict[str, Any], back_end: str) -> None:
    oracle, ours = model_pair(class_name, back_end, add_cross_attention=True, **flags)
    inputs: dict[str, Any] = {**task_inputs(class_name), "encoder_hidden_states": torch.randn(2, 7, 32)}
    if encoder_mask == "2D":
        inputs["encoder_attention_mask"] = padded([7, 4], 7, "right")
    elif encoder_mask == "3D":
        inputs["encoder_attention_mask"] = padded([7, 4], 7, "right")[:, None].expand(-1, 11, -1)
    assert_same_training_step(ours, oracle, **inputs)
    shown = {"output_attentions": True, "output_hidden_states": True, "head_mask": torch.rand(3, ours.config.n_head)}
    assert_same_output(ours(**inputs, **shown), oracle(**inputs, **shown))


@pytest.mark.parametrize("chunks", [[10, 1], [1] * 11, [5, 1, 3, 2]], ids=str)
def test_cached_cross_attention(chunks: list[int], back_end: str) -> None:
    oracle, ours = model_pair("GPT2LMHeadModel", back_end, add_cross_attention=True)
    ids = token_ids()
    inputs = {
        "encoder_hidden_states": torch.randn(2, 7, 32),
        "encoder_attention_mask": padded([7, 4], 7, "right"),
    }
    actual = run_in_chunks(ours, ids, chunks, **inputs)
    assert_close(actual, oracle(ids, **inputs).logits)
    assert_close(actual, run_in_chunks(oracle, ids, chunks, **inputs))


@torch.no_grad()
def test_legacy_tuples_with_cross_attention() -> None:
    oracle, ours = model_pair("GPT2LMHeadModel", add_cross_attention=True)
    ids, states = token_ids(), torch.randn(2, 7, 32)
    past = ours(ids[:, :6], encoder_hidden_states=states).past_key_values.to_legacy_cache()
    assert [len(layer) for layer in past] == [4, 4, 4]
    out = ours(ids[:, 6:], encoder_hidden_states=states, past_key_values=past)
    assert_close(out.logits, oracle(ids, encoder_hidden_states=states).logits[:, 6:])
