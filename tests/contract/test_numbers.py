"""However a model is called, its numbers are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gptrio import DynamicCache, StaticCache
from gptrio.testing import assert_close
from tests.contract.families import Family, tokens
from tests.reference import assert_same_gradients, padded, positions_of, run_in_chunks

pytestmark = pytest.mark.filterwarnings("ignore:the batch is padded on the left")
BACK_ENDS = ["eager", "sdpa"]
NO_DROPOUT = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gpt_neo": {"resid_dropout": 0.0, "embed_dropout": 0.0, "attention_dropout": 0.0},
    "gpt_neox": {"hidden_dropout": 0.0, "attention_dropout": 0.0},
}


@pytest.mark.parametrize("chunks", [[20, 1], [1] * 21, [5, 1, 9, 6]], ids=str)
@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("side", [None, "left"])
def test_cached_equals_uncached(family: Family, chunks: list[int], back_end: str, side: str | None) -> None:
    model = family.build(attn_implementation=back_end)
    ids = tokens(3)
    mask = None if side is None else padded([21, 13, 4], 21, side)
    extra = {} if mask is None else {"attention_mask": mask, "position_ids": positions_of(mask)}
    real = torch.ones(3, 21, dtype=torch.bool) if mask is None else mask.bool()
    expected = model(input_ids=ids, use_cache=False, **extra).logits
    assert_close(run_in_chunks(model, ids, chunks, mask)[real], expected[real])


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[21], [20, 1], [5, 1, 9, 6]], ids=str)
@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_next_logits_equal_the_forward(family: Family, chunks: list[int], back_end: str) -> None:
    model, ids = family.build(attn_implementation=back_end), tokens()
    cache, whole = DynamicCache(config=model.config), DynamicCache(config=model.config)
    got = [model.next_logits(part, cache) for part in ids.split(chunks, dim=1)]
    want = [model(part, past_key_values=whole).logits[:, -1:] for part in ids.split(chunks, dim=1)]
    for mine, its in zip(got, want, strict=True):
        assert_close(mine, its)
    for layer, other in zip(cache.layers, whole.layers, strict=True):
        assert_close(layer.keys, other.keys)
        assert_close(layer.values, other.values)


@torch.no_grad()
def test_static_cache_equals_none(family: Family) -> None:
    model = family.build()
    ids = tokens()
    cache = StaticCache(model.config, max_cache_len=32)
    first = model(input_ids=ids[:, :12], past_key_values=cache, cache_position=torch.arange(12)).logits
    steps = [
        model(input_ids=ids[:, i : i + 1], past_key_values=cache, cache_position=torch.tensor([i])).logits
        for i in range(12, 21)
    ]
    assert_close(torch.cat([first, *steps], dim=1), model(input_ids=ids).logits)


@torch.no_grad()
def test_cropped_reordered_and_repeated_cache(family: Family) -> None:
    model = family.build()
    ids = tokens()
    cache = model(input_ids=ids[:, :15], past_key_values=DynamicCache(config=model.config)).past_key_values
    cache.crop(13)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)
    rows = ids[[1, 1, 0, 0]]
    assert_close(model(input_ids=rows[:, 13:], past_key_values=cache).logits, model(input_ids=rows).logits[:, 13:])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_padded_equals_alone(family: Family, side: str, back_end: str) -> None:
    model = family.build(attn_implementation=back_end)
    lengths = [21, 12, 1, 5]
    ids, mask = tokens(4), padded(lengths, 21, side)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask)).logits
    for row, length in enumerate(lengths):
        real = mask[row].bool()
        alone = model(input_ids=ids[row, real][None]).logits[0]
        assert alone.shape[0] == length
        assert_close(logits[row, real], alone)


def test_packed_equals_alone(family: Family) -> None:
    """Positions that start anew separate sequences, where the reference has it so."""
    model = family.build()
    ids = tokens(1, 20)
    positions = torch.cat([torch.arange(8), torch.arange(12)])[None]
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    if model.base_model.packs_by_position:
        assert_close(logits[:, :8], model(input_ids=ids[:, :8]).logits)
        assert_close(logits[:, 8:], model(input_ids=ids[:, 8:]).logits)
    else:
        assert_close(logits, model(input_ids=ids, position_ids=positions, use_cache=True).logits)


def argument_cases() -> dict[str, dict[str, Any]]:
    torch.manual_seed(1)
    ready = torch.rand(2, 1, 21, 21) < 0.7
    return {
        "plain": {},
        "right padding": {"attention_mask": padded([21, 9], 21, "right")},
        "left padding": {"attention_mask": padded([21, 9], 21, "left")},
        "bool 4D mask": {"attention_mask": ready | torch.eye(21, dtype=torch.bool)},
        "head mask": {"head_mask": torch.rand(2, 4)},
        "head mask of 0 and 1": {"head_mask": torch.tensor([1.0, 0.0, 1.0, 1.0])},
        "weights shown": {"output_attentions": True},
    }


@pytest.mark.parametrize("case", argument_cases())
def test_back_ends_agree(family: Family, case: str) -> None:
    eager, sdpa = family.build(attn_implementation="eager"), family.build(attn_implementation="sdpa")
    sdpa.load_state_dict(eager.state_dict())
    inputs = {"input_ids": tokens(), **argument_cases()[case]}
    inputs["labels"] = inputs["input_ids"]
    one, other = eager(**inputs), sdpa(**inputs)
    assert_close(other.logits, one.logits)
    one.loss.backward()
    other.loss.backward()
    assert_same_gradients(sdpa, eager)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_back_end_is_switched_in_place(family: Family, back_end: str) -> None:
    model = family.build(attn_implementation="eager")
    ids = tokens()
    before = model(input_ids=ids).logits
    model.set_attn_implementation(back_end)
    assert model.attn_implementation == back_end
    assert_close(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(family: Family, back_end: str, reentrant: bool) -> None:
    off = NO_DROPOUT[family.model_type]
    plain = family.build(attn_implementation=back_end, **off).train()
    recomputing = family.build(attn_implementation=back_end, **off).train()
    recomputing.load_state_dict(plain.state_dict())
    recomputing.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert recomputing.is_gradient_checkpointing
    ids = tokens()
    for model in (plain, recomputing):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert_same_gradients(recomputing, plain, 1e-6)
    recomputing.gradient_checkpointing_disable()
    assert not recomputing.is_gradient_checkpointing


def test_gradient_checkpointing_with_dropout_repeats_its_draws(family: Family) -> None:
    plain, recomputing = family.build().train(), family.build().train()
    recomputing.load_state_dict(plain.state_dict())
    recomputing.gradient_checkpointing_enable()
    ids = tokens()
    for model in (plain, recomputing):
        torch.manual_seed(3)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert_same_gradients(recomputing, plain, 1e-6)


def test_gradient_checkpointing_after_a_past(family: Family) -> None:
    """As prefixes of adapters are trained: the past is not appended to again when blocks are run again."""
    off = NO_DROPOUT[family.model_type]
    plain, recomputing = family.build(**off).train(), family.build(**off).train()
    recomputing.load_state_dict(plain.state_dict())
    ids = tokens()
    past = plain.eval()(input_ids=ids[:, :5]).past_key_values.to_legacy_cache()
    past = tuple((keys.detach(), values.detach()) for keys, values in past)
    recomputing.gradient_checkpointing_enable()
    for model in (plain.train(), recomputing):
        model(input_ids=ids[:, 5:], past_key_values=past, labels=ids[:, 5:], use_cache=False).loss.backward()
    assert_same_gradients(recomputing, plain, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_half_precision_is_sane(family: Family, dtype: torch.dtype, back_end: str) -> None:
    model = family.build(attn_implementation=back_end)
    half = family.build(attn_implementation=back_end).to(dtype)
    half.load_state_dict(model.state_dict())
    model.load_state_dict(half.state_dict())  # the same rounded weights
    ids, mask = tokens(4), padded([21, 12, 1, 5], 21, "left")
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions_of(mask)}
    out = half(**inputs, labels=ids)
    assert out.logits.dtype == dtype
    assert out.logits.isfinite().all()
    bound = 0.002 if dtype is torch.float16 else 0.02  # a rounding is 2^-11 or 2^-8; some tens of them add up
    assert_close(out.logits[mask.bool()], model(**inputs).logits[mask.bool()], 4 * bound)
    out.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in half.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("kind", ["2D", "bool 4D", "lowest value", "minus infinity"])
def test_a_row_that_sees_nothing_is_no_nan(family: Family, dtype: torch.dtype, back_end: str, kind: str) -> None:
    model = family.build(attn_implementation=back_end).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # scores far from zero
    mask: Tensor = torch.tensor([[0] * 21, [1] * 21])
    if kind != "2D":
        mask = mask.bool()[:, None, None].expand(2, 1, 21, 21).tril()
        lowest = float("-inf") if kind == "minus infinity" else torch.finfo(dtype).min
        mask = mask if kind == "bool 4D" else torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, lowest)
    ids = tokens()
    logits = model(input_ids=ids, attention_mask=mask).logits
    assert logits.isfinite().all()
    if dtype is torch.float32:  # halves are too coarse at this scale
        assert_close(logits[1], model(input_ids=ids[1:]).logits[0])


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_removed_heads_equal_masked_heads(family: Family, back_end: str) -> None:
    model = family.build(attn_implementation=back_end)
    ids = tokens()
    mask = torch.tensor([[0.0, 1, 1, 0], [1, 1, 0, 1]])
    expected = model(input_ids=ids, head_mask=mask).logits
    model.prune_heads({0: [0], 1: [2]})
    model.prune_heads({0: [0, 3]})
    assert model.config.pruned_heads == {0: [0, 3], 1: [2]}
    assert_close(model(input_ids=ids).logits, expected)
    assert_close(run_in_chunks(model, ids, [9, 1, 11]), expected)
