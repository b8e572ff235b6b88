"""Attention with dropped weights against the formula, with the same weights dropped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gptrio
from gptrio.nn import block_attention
from gptrio.nn.attention import AttentionOptions, attention
from gptrio.nn.dropping import draw_kept
from gptrio.nn.masks import AttentionMask
from gptrio.testing import assert_close, tiny_config

ROWS, HEADS, LENGTH, WIDTH, RATE = 2, 3, 21, 4, 0.3
CASES = ("causal", "padding", "even padding", "segments", "custom", "not causal", "window", "one query")


@pytest.fixture(params=[(4, 1), (4, 200), (64, 1 << 20)], autouse=True, ids=["blocks of a head", "blocks", "one block"])
def block(request, monkeypatch):
    block, scores = request.param
    monkeypatch.setattr(block_attention, "_BLOCK", block)
    monkeypatch.setattr(block_attention, "_SCORES", scores)
    monkeypatch.setattr(block_attention, "_LEAST", 1)
    return block


def mask_of(case: str) -> AttentionMask:
    queries = 1 if case == "one query" else LENGTH
    mask = AttentionMask(queries, LENGTH, torch.device("cpu"), query_start=LENGTH - queries)
    if "padding" in case:
        mask.attention_mask = torch.ones(ROWS, LENGTH, dtype=torch.bool)
        mask.attention_mask[0, :5] = False
        mask.mask_fully_padded_rows = case == "padding"
    elif case == "segments":
        mask.segments = torch.arange(LENGTH).div(8, rounding_mode="floor").expand(ROWS, -1)
    elif case == "custom":
        mask.custom = torch.arange(ROWS * LENGTH * LENGTH).sin().view(ROWS, 1, LENGTH, LENGTH)
    elif case == "not causal":
        mask.causal = False
    elif case == "window":
        mask.window = 15
    return mask


def inputs(queries: int = LENGTH) -> list[Tensor]:
    """Queries, keys and values, whose heads are split as a model splits them."""
    lengths = (queries, LENGTH, LENGTH)
    return [torch.randn(ROWS, n, HEADS, WIDTH).transpose(1, 2).requires_grad_() for n in lengths]


def formula(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, keep: Tensor, factor: float) -> Tensor:
    scores = q @ k.transpose(-1, -2) * 0.5 + (0 if mask.is_unmasked else mask.additive(torch.float32))
    return (scores.softmax(-1) * keep * factor) @ v


def drawn(mask: AttentionMask, rate: float) -> Tensor:
    """The weights that a call keeps, drawn as it draws them."""
    shape = torch.Size((ROWS, HEADS, mask.query_length, WIDTH))
    keep = torch.ones(ROWS, HEADS, mask.query_length, LENGTH, dtype=torch.bool)
    is_causal = block_attention._is_causal(mask)
    window = mask.window if mask.is_causal_span else None
    plan = block_attention._Plan(1.0, round(rate * 65536), is_causal, window, torch.float32)
    for part in plan.parts(shape, LENGTH) if rate else ():
        target = keep[part.rows, part.heads, part.queries, part.keys]
        drawn = draw_kept(target.flatten(0, 1).shape, plan.dropped)
        target.copy_(drawn.view(target.shape))
    return keep


@pytest.mark.parametrize("rate", [0.0, RATE])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_of_both_orders_are_those_of_the_formula(case, rate):
    mask = mask_of(case)
    q, k, v = inputs(mask.query_length)
    torch.manual_seed(5)
    actual = block_attention.attend(q, k, v, mask, 0.5, rate)
    torch.manual_seed(5)
    keep = drawn(mask, rate)
    assert not rate or 0.5 < keep.float().mean() < 1
    expected = formula(
        q, k, v, mask_of(case) if case != "custom" else mask, keep, 65536 / (65536 - round(rate * 65536))
    )
    assert_close(actual, expected, 1e-6)
    direction = torch.randn_like(actual)
    found = [torch.autograd.grad(out, (q, k, v), direction, create_graph=True) for out in (actual, expected)]
    again = [torch.autograd.grad(sum(g.square().sum() for g in grads), (q, k, v)) for grads in found]
    plain = torch.autograd.grad(attention_again(q, k, v, mask, rate), (q, k, v), direction)
    for mine, its, once in zip(*found, plain, strict=True):
        assert_close(mine, its, 2e-6)
        assert_close(once, its, 2e-6)
    for mine, its in zip(*again, strict=True):
        assert_close(mine, its, 1e-5)


def test_an_input_without_gradient_is_left_out_of_those_that_are_differentiated_again():
    mask, (q, k, v) = mask_of("causal"), inputs()
    found = []
    for each in (k, k.detach()):
        gradient = torch.autograd.grad(attention_again(q, each, v, mask, RATE).sum(), (q, v), create_graph=True)
        found.append(torch.autograd.grad(gradient[0].square().sum(), (q, v)))
    assert all(map(torch.equal, *found))


def attention_again(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, rate: float) -> Tensor:
    """The same call, whose backward pass is not differentiated."""
    torch.manual_seed(5)
    return block_attention.attend(q, k, v, mask, 0.5, rate)


@pytest.mark.parametrize("is_autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_computed_in_float32_and_rounded_once(dtype, is_autocast):
    mask, rounding = mask_of("causal"), torch.finfo(dtype).eps
    given = [x.detach().to(dtype) for x in inputs()]
    wide = [x.float().requires_grad_() for x in given]
    narrow = [(x.float() if is_autocast else x).requires_grad_() for x in given]
    with torch.autocast("cpu", dtype, enabled=is_autocast):
        assert block_attention.supports(*narrow, mask, RATE)
        actual = attention_again(*narrow, mask, RATE)
    expected = attention_again(*wide, mask, RATE)
    assert actual.dtype is dtype
    torch.testing.assert_close(actual.float(), expected, rtol=rounding, atol=rounding / 8)
    direction = torch.randn_like(actual)
    gradients = torch.autograd.grad(actual, narrow, direction)
    for mine, its in zip(gradients, torch.autograd.grad(expected, wide, direction.float()), strict=True):
        assert mine.dtype is narrow[0].dtype
        torch.testing.assert_close(mine.float(), its, rtol=rounding, atol=rounding / 8)


@pytest.mark.parametrize("block", [(4, 200)], indirect=True, ids=["blocks"])
def test_the_mean_over_many_draws_is_attention_without_dropout():
    q, k, v = (x.detach() for x in inputs())
    mask = mask_of("causal")
    mean = sum(block_attention.attend(q, k, v, mask, 0.5, 0.1) for _ in range(800)) / 800
    exact = formula(q, k, v, mask, torch.ones(()), 1)
    assert (mean - exact).abs().max() < 0.06 * v.abs().max()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
def test_the_share_of_dropped_weights(rate):
    keep = draw_kept(torch.Size([400_001]), round(rate * 65536))
    assert keep.shape == (400_001,)
    assert abs(keep.float().mean().item() - (1 - rate)) < 4 * (rate * (1 - rate) / 400_001) ** 0.5 + 1e-5


def test_each_draw_is_anew_and_repeats_with_its_seed():
    shape = torch.Size([64])
    torch.manual_seed(1)
    first, second = draw_kept(shape, 32768), draw_kept(shape, 32768)
    torch.manual_seed(1)
    assert torch.equal(draw_kept(shape, 32768), first) and not torch.equal(first, second)


def test_training_drops_and_evaluation_does_not():
    model = gptrio.GPT2LMHeadModel(tiny_config("gpt2", attn_pdrop=0.5, resid_pdrop=0.0, embd_pdrop=0.0))
    model.set_attn_implementation("sdpa")
    ids = torch.arange(40)[None]
    exact = model.eval()(ids).logits
    first, second = model.train()(ids).logits, model(ids).logits
    assert not torch.allclose(first, second) and not torch.allclose(first, exact)
    assert torch.equal(model.eval()(ids).logits, exact)


def test_what_it_does_not_take():
    q, k, v = inputs()
    causal, free = mask_of("causal"), mask_of("not causal")
    assert block_attention.supports(q, k, v, causal, 0.0) and block_attention.supports(q, k, v, free, 0.1)
    assert not block_attention.supports(q, k, v, causal, 1.0) and not block_attention.supports(q, k, v, free, 0.0)
    assert not block_attention.supports(q.double(), k.double(), v.double(), causal, 0.1)
    assert not block_attention.supports(q.bfloat16(), k, v, causal, 0.1)
    assert not block_attention.supports(q.detach(), k.detach(), v.detach(), causal, 0.0)
    with torch.no_grad():
        assert not block_attention.supports(q, k, v, causal, 0.0)
    mask, options = mask_of("causal"), AttentionOptions(0.5, dropout=1.0)
    assert not attention(*inputs(), mask, options, implementation="sdpa")[0].any()
