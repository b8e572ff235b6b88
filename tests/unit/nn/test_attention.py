"""The one attention call against the formula written out in float64."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from gptrio.errors import UnsupportedError
from gptrio.nn.attention import AttentionOptions, attention, check_implementation, split_heads
from gptrio.nn.masks import AttentionMask
from gptrio.testing import assert_close

CPU = torch.device("cpu")
BACK_ENDS = ["eager", "sdpa"]
B, H, T, S, D = 2, 3, 5, 9, 4


def inputs(queries: int = T, keys: int = S) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(B, H, queries, D), torch.randn(B, H, keys, D), torch.randn(B, H, keys, D)


def formula(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float, head_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Result (B, T, H * D) and weights (B, H, T, S), one query after the other."""
    q, k, v = q.double(), k.double(), v.double()
    rows, heads, queries, width = q.shape
    weights = torch.zeros(rows, heads, queries, k.shape[2], dtype=torch.float64)
    for b, h, t in product(range(rows), range(heads), range(queries)):
        seen = allowed[b, t].nonzero().flatten()
        scores = (k[b, h, seen] @ q[b, h, t]) * scale
        weights[b, h, t, seen] = scores.exp() / scores.exp().sum()
    if head_mask is not None:
        weights = weights * head_mask.double()
    return (weights @ v).transpose(1, 2).reshape(rows, queries, heads * width), weights


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("head_mask", [None, torch.tensor([0.0, 1.0, 0.5]).view(1, 3, 1, 1)], ids=["all", "heads"])
@pytest.mark.parametrize("float32_scores", [True, False])
@pytest.mark.parametrize("case", ["square", "past", "step", "cross", "window", "padding"])
def test_formula(case: str, back_end: str, need_weights: bool, head_mask: Tensor | None, float32_scores: bool) -> None:
    places = torch.arange(S)
    options: dict[str, Any] = {"query_start": S - T}
    queries = T
    if case == "square":
        queries, options = S, {}
    elif case == "step":
        queries, options = 1, {"query_start": S - 1}
    elif case == "cross":
        options = {"causal": False}
    elif case == "window":
        options["window"] = 3
    elif case == "padding":
        options["attention_mask"] = torch.stack([places > 1, places >= 0])
    at = torch.arange(queries)[:, None] + options.get("query_start", 0)
    allowed = places <= at if case != "cross" else torch.ones(queries, S, dtype=torch.bool)
    if case == "window":
        allowed = allowed & (places > at - 3)
    allowed = allowed.expand(B, -1, -1)
    if case == "padding":
        allowed = allowed & options["attention_mask"][:, None]
    q, k, v = inputs(queries)
    mask = AttentionMask(queries, S, CPU, **options)
    out, weights = attention(
        q,
        k,
        v,
        mask,
        AttentionOptions(0.7, float32_scores=float32_scores, need_weights=need_weights),
        head_mask=head_mask,
        implementation=back_end,
    )
    expected, expected_weights = formula(q, k, v, allowed, 0.7, head_mask)
    assert_close(out, expected, 1e-6)
    assert (weights is not None) == need_weights
    if weights is not None:
        assert_close(weights, expected_weights, 1e-6)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a_head_mask_of_single_places(back_end: str) -> None:
    q, k, v = inputs(S)
    head_mask = torch.rand(B, H, S, S)
    out, _ = attention(
        q, k, v, AttentionMask(S, S, CPU), AttentionOptions(1.0), head_mask=head_mask, implementation=back_end
    )
    expected, _ = formula(q, k, v, torch.ones(S, S).tril().bool().expand(B, -1, -1), 1.0, head_mask)
    assert_close(out, expected, 1e-6)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_dropout_keeps_the_mean_and_drops(back_end: str) -> None:
    q, k, v = (x[:1].expand(5000, -1, -1, -1) for x in inputs(S))
    mask = AttentionMask(S, S, CPU)
    plain, _ = attention(q[:1], k[:1], v[:1], mask, AttentionOptions(0.5), implementation=back_end)
    drawn, _ = attention(q, k, v, mask, AttentionOptions(0.5, dropout=0.3), implementation=back_end)
    assert drawn.std(0).min() > 0.01
    assert_close(drawn.mean(0, keepdim=True), plain, 0.05)


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("trained", ["q", "k", "v"])
def test_gradients_of_queries_that_see_padding_alone(back_end: str, trained: str) -> None:
    """Also if only one of the three is trained: fused kernels lose such rows on the way back."""
    tensors = dict(zip("qkv", inputs(S), strict=True))
    padding = torch.tensor([[0] * 4 + [1] * 5, [1] * 9]).bool()
    weight = torch.randn(B, S, H * D)
    gradients = []
    for implementation in ("eager", back_end):
        leaf = tensors[trained].clone().requires_grad_()
        mask = AttentionMask(S, S, CPU, attention_mask=padding)
        out, _ = attention(
            **{**tensors, trained: leaf}, mask=mask, options=AttentionOptions(0.5), implementation=implementation
        )
        (out * weight).sum().backward()
        gradients.append(leaf.grad)
    assert_close(gradients[1], gradients[0], 1e-6)


def test_split_heads_puts_features_of_a_head_together() -> None:
    x = torch.arange(24.0).view(1, 2, 12)
    assert torch.equal(split_heads(x, 4)[0, 1], x[0, :, 4:8])


def test_unknown_back_ends_are_refused_with_the_known_ones() -> None:
    assert check_implementation("sdpa") == "sdpa"
    with pytest.raises(UnsupportedError, match="'paged' is not known; use one of eager, sdpa"):
        check_implementation("paged")
