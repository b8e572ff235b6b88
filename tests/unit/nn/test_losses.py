"""Losses against sums written out."""

from __future__ import annotations

import math

import pytest
import torch

from gptrio.errors import InputError, TokenIdError
from gptrio.nn.losses import classification_loss, infer_problem_type, next_token_loss, span_loss, token_loss

LOGITS = torch.tensor([[[1.0, 2.0, 0.5], [0.0, 0.0, 3.0], [2.0, -1.0, 1.0]], [[0.3, 0.2, 0.1], [5, 4, 3], [0, 1, 0]]])
LABELS = torch.tensor([[0, 1, 2], [2, -100, 0]])


def surprise(row: int, place: int, label: int) -> float:
    """Minus the log-probability of a label."""
    logits = LOGITS[row, place].tolist()
    return math.log(sum(math.exp(value) for value in logits)) - logits[label]


COUNTED = [surprise(0, 0, 1), surprise(0, 1, 2), surprise(1, 1, 0)]


def test_next_token_loss_shifts_and_leaves_out() -> None:
    assert next_token_loss(LOGITS, LABELS).item() == pytest.approx(sum(COUNTED) / 3)


@pytest.mark.parametrize("count", [7, torch.tensor(7)])
def test_next_token_loss_over_a_count(count: int | torch.Tensor) -> None:
    assert next_token_loss(LOGITS, LABELS, num_items_in_batch=count).item() == pytest.approx(sum(COUNTED) / 7)


def test_next_token_loss_with_labels_shifted_already() -> None:
    shifted = torch.tensor([[1, 2, -100], [-100, 0, -100]])
    assert torch.equal(next_token_loss(LOGITS, None, shift_labels=shifted), next_token_loss(LOGITS, LABELS))


def test_next_token_loss_with_another_label_left_out() -> None:
    labels = LABELS.masked_fill(LABELS == -100, 1)
    loss = next_token_loss(LOGITS, labels, ignore_index=1)
    assert loss.item() == pytest.approx((COUNTED[1] + COUNTED[2]) / 2)


def test_next_token_loss_is_taken_in_float32() -> None:
    halves = LOGITS.bfloat16()
    loss = next_token_loss(halves, LABELS)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, next_token_loss(halves.float(), LABELS))


def test_token_loss_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match=r"2 labels do not fit logits of shape \(3, 3\)"):
        token_loss(LOGITS[0], torch.tensor([0, 1]))
    with pytest.raises(TokenIdError, match="label 3 is none of the 3 classes"):
        token_loss(LOGITS[0], torch.tensor([0, 1, 3]))


def test_classification_losses() -> None:
    logits = torch.tensor([[1.0, -2.0], [0.5, 0.25]])
    values = torch.tensor([[0.5, 1.0], [0.0, 0.25]])
    assert classification_loss(logits, values, "regression").item() == pytest.approx((0.25 + 9 + 0.25 + 0) / 4)
    log_odds = [
        math.log1p(math.exp(-1)),
        math.log1p(math.exp(-2)),
        math.log1p(math.exp(0.5)),
        math.log1p(math.exp(-0.25)),
    ]
    both = torch.tensor([[1, 0], [0, 1]])
    loss = classification_loss(logits, both, "multi_label_classification")
    assert loss.item() == pytest.approx(sum(log_odds) / 4)
    one = [math.log1p(math.exp(-3)), math.log1p(math.exp(0.25))]
    loss = classification_loss(logits, torch.tensor([[0], [1]]), "single_label_classification")
    assert loss.item() == pytest.approx(sum(one) / 2)
    with pytest.raises(InputError, match="problem_type='guess' is not known"):
        classification_loss(logits, both, "guess")


@pytest.mark.parametrize(
    ("num_labels", "dtype", "expected"),
    [
        (1, torch.long, "regression"),
        (1, torch.float32, "regression"),
        (3, torch.long, "single_label_classification"),
        (3, torch.int, "single_label_classification"),
        (3, torch.float32, "multi_label_classification"),
    ],
)
def test_problem_type_is_inferred(num_labels: int, dtype: torch.dtype, expected: str) -> None:
    assert infer_problem_type(num_labels, torch.zeros(2, dtype=dtype)) == expected


def test_span_loss_leaves_out_what_lies_outside() -> None:
    starts, ends = LOGITS[:, 0], LOGITS[:, 1]
    loss = span_loss(starts, ends, torch.tensor([[1], [99]]), torch.tensor([2, 0]))
    assert loss.item() == pytest.approx((surprise(0, 0, 1) + (surprise(0, 1, 2) + surprise(1, 1, 0)) / 2) / 2)
