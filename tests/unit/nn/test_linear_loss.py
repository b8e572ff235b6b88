"""The loss without all scores against the loss of all scores."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.errors import InputError, TokenIdError
from gptrio.kernels import widened
from gptrio.nn import linear_loss
from gptrio.nn.linear_loss import linear_cross_entropy
from gptrio.nn.losses import token_loss
from tests import cases

ROWS, WIDTH, CLASSES = 23, 8, 31


@pytest.fixture(params=cases.first([700, 1, 1 << 20], 2), autouse=True, ids=["several chunks", "one row", "one chunk"])
def chunk_bytes(request, monkeypatch):
    monkeypatch.setattr(linear_loss, "CHUNK_BYTES", request.param)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    states, weight = torch.randn(ROWS, WIDTH, dtype=dtype), torch.randn(CLASSES, WIDTH, dtype=dtype)
    labels = torch.randint(CLASSES, (ROWS,))
    labels[::4] = -100
    return states.requires_grad_(), weight.requires_grad_(), labels


def whole(states: Tensor, weight: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """The loss from all scores."""
    scores = F.linear(states, weight)
    return token_loss(scores.to(torch.promote_types(scores.dtype, torch.float32)), labels, **options)


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, of, torch.tensor(0.7, dtype=loss.dtype)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_items_in_batch": 5},
        {"num_items_in_batch": torch.tensor(5)},
        {"label_smoothing": 0.1},
        {"label_smoothing": 0.3, "num_items_in_batch": 9},
        {"ignore_index": 3},
    ],
    ids=str,
)
def test_value_and_gradients_are_those_of_all_scores(options):
    states, weight, labels = inputs(torch.float64)
    if "ignore_index" in options:
        labels = labels.clamp(min=3)
    actual, expected = linear_cross_entropy(states, weight, labels, **options), whole(states, weight, labels, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    for mine, its in zip(gradients(actual, states, weight), gradients(expected, states, weight), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-11, atol=1e-13)


def test_float32_is_within_rounding():
    states, weight, labels = inputs()
    actual, expected = linear_cross_entropy(states, weight, labels), whole(states, weight, labels)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    for mine, its in zip(gradients(actual, states, weight), gradients(expected, states, weight), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-6)


def test_gradcheck():
    states, weight, labels = inputs(torch.float64)
    states, weight = (each[:, :3].detach().requires_grad_() for each in (states[:7], weight))
    labels = labels[:7]
    for smoothing in (0.0, 0.2):
        loss = lambda s, w, e=smoothing: linear_cross_entropy(s, w, labels, label_smoothing=e)  # noqa: E731
        assert torch.autograd.gradcheck(loss, (states, weight), nondet_tol=1e-12)
        assert torch.autograd.gradgradcheck(loss, (states, weight), nondet_tol=1e-12)


@pytest.mark.parametrize("frozen", ["states", "weight", "both"])
def test_what_is_frozen_gets_no_gradient(frozen):
    states, weight, labels = inputs()
    expected = gradients(whole(states, weight, labels), states, weight)
    states.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "states")
    loss = linear_cross_entropy(states, weight, labels)
    torch.testing.assert_close(loss, whole(states, weight, labels), rtol=0, atol=1e-6)
    if frozen == "both":
        assert not loss.requires_grad
        return
    (actual,) = gradients(loss, weight if frozen == "states" else states)
    torch.testing.assert_close(actual, expected[frozen == "states"], rtol=0, atol=1e-6)


def test_a_second_backward_pass_gives_the_same():
    states, weight, labels = inputs()
    loss = linear_cross_entropy(states, weight, labels)
    loss.backward(retain_graph=True)
    once = states.grad.clone(), weight.grad.clone()
    loss.backward()
    for total, first in zip((states.grad, weight.grad), once, strict=True):
        torch.testing.assert_close(total, 2 * first, rtol=0, atol=1e-6)


def test_gradients_of_gradients_are_those_of_all_scores():
    found = []
    states, weight, labels = inputs(torch.float64)
    for loss in (linear_cross_entropy, whole):
        first = torch.autograd.grad(loss(states, weight, labels), (states, weight), create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), (states, weight)))
    for mine, its in zip(*found, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mixed", [True, False], ids=["autocast", "all bfloat16"])
def test_bfloat16_products_and_float32_sums(mixed, monkeypatch):
    monkeypatch.setattr(widened, "has_no_instructions", lambda dtype: False)
    states, weight, labels = inputs(torch.float32 if mixed else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        actual, expected = linear_cross_entropy(states, weight, labels), whole(states, weight, labels)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)
    exact = gradients(whole(states.double(), weight.double(), labels), states, weight)
    both = gradients(actual, states, weight), gradients(expected, states, weight)
    for mine, its, truth in zip(*both, exact, strict=True):
        assert mine.dtype == its.dtype
        largest = truth.abs().max()
        assert (mine - truth).abs().max() <= 2.5 * (its - truth).abs().max()
        assert (mine - its).abs().max() <= 1e-2 * largest


@pytest.mark.parametrize("mixed", [True, False], ids=["autocast", "all bfloat16"])
def test_emulated_bfloat16_products_are_in_float32(mixed, monkeypatch):
    monkeypatch.setattr(widened, "has_no_instructions", lambda dtype: dtype is torch.bfloat16)
    states, weight, labels = inputs(torch.float32 if mixed else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        actual = linear_cross_entropy(states, weight, labels)
    exact = whole(states.double(), weight.double(), labels)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), exact, rtol=0, atol=1e-6)
    for mine, truth in zip(gradients(actual, states, weight), gradients(exact, states, weight), strict=True):
        assert mine.dtype == states.dtype
        torch.testing.assert_close(mine.double(), truth.double(), rtol=0, atol=1e-6 if mixed else 2**-8)


def test_scores_far_apart_do_not_overflow():
    states, weight, labels = inputs()
    with torch.no_grad():
        states *= 100
    actual, expected = linear_cross_entropy(states, weight, labels), whole(states, weight, labels)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    for mine, its in zip(gradients(actual, states, weight), gradients(expected, states, weight), strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)


def test_no_label_that_counts():
    states, weight, _ = inputs()
    none = torch.full((ROWS,), -100)
    assert math.isnan(linear_cross_entropy(states, weight, none).item())  # as the mean over nothing is
    loss = linear_cross_entropy(states, weight, none, num_items_in_batch=4)
    assert loss.item() == 0 and all(not g.any() for g in gradients(loss, states, weight))


def test_wrong_labels_are_named():
    states, weight, labels = inputs()
    for bad in (CLASSES, -1):
        labels[2] = bad
        with pytest.raises(TokenIdError, match=f"label {bad} is none of the {CLASSES} classes"):
            linear_cross_entropy(states, weight, labels)
    with pytest.raises(InputError, match="22 labels do not fit"):
        linear_cross_entropy(states, weight, labels[1:])
