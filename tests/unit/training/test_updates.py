"""The loss of an update is that of all its batches in one, whatever their sizes; and what is logged is its mean."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import gptrio
from gptrio.training.losses import LabelSmoother, batch_weights
from tests.training_pair import arguments, collate, pair_of, rows_for

HEADS = [
    "GPT2LMHeadModel",
    "GPTNeoForSequenceClassification",
    "GPTNeoXForTokenClassification",
    "GPT2ForQuestionAnswering",
    "GPTNeoXForCausalLM",
]


def ragged_rows(class_name: str, rows: int = 10) -> list[dict]:
    """Rows of a task with very different numbers of labels that count."""
    data = rows_for(class_name, rows)
    if class_name.endswith("QuestionAnswering"):  # which chooses among all positions, those of padding included
        width = max(len(row["input_ids"]) for row in data)
        return [{**row, "input_ids": (row["input_ids"] * 5)[:width]} for row in data]
    for i, row in enumerate(data):
        if isinstance(row.get("labels"), list):
            length = len(row["labels"])
            row["labels"] = [label if place > i % length else -100 for place, label in enumerate(row["labels"])]
            row["labels"][-1] = 1
    return data


def trained(class_name: str, data: list[dict], batch: int, accumulated: int, **changes) -> gptrio.Trainer:
    torch.manual_seed(7)
    _, model = pair_of(class_name)
    values = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated, "num_train_epochs": 2}
    trainer = gptrio.Trainer(model, arguments(gptrio, **values, **changes), collate, data)
    trainer.train()
    return trainer


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_name", HEADS)
def test_accumulating_batches_equals_one_batch(class_name, smoothing):
    torch.manual_seed(1)
    data = ragged_rows(class_name)  # 10 rows: groups of 2 + 2 + 2 and of 2 + 2, then of 4 + 4 + 2
    changes = {"label_smoothing_factor": smoothing}
    whole = trained(class_name, data, 6, 1, **changes)
    parts = trained(class_name, data, 2, 3, **changes)
    for one, other in zip(whole.state.log_history, parts.state.log_history, strict=True):
        for name in {"loss", "grad_norm"} & one.keys():
            assert one[name] == pytest.approx(other[name], rel=2e-5, abs=1.01e-4 if name == "loss" else 0), name
    for (name, one), other in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        if name != "qa_outputs.bias":  # its gradient is 0 but for rounding, of which Adam makes whole steps
            torch.testing.assert_close(one, other, atol=3e-6, rtol=1e-4, msg=name)


def test_a_last_batch_of_fewer_rows_counts_as_its_rows():
    torch.manual_seed(1)
    data = ragged_rows("GPT2ForSequenceClassification", 5)
    whole = trained("GPT2ForSequenceClassification", data, 5, 1)
    parts = trained("GPT2ForSequenceClassification", data, 3, 2)  # 3 + 2 rows
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=3e-6, rtol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_logged_loss_can_be_the_mean_over_predicted_tokens(smoothing):
    class PerToken(gptrio.Trainer):
        count_first_labels = False

    torch.manual_seed(1)
    data, (_, model) = rows_for("GPT2LMHeadModel", 6), pair_of("GPT2LMHeadModel")
    batch = collate(data)
    with torch.no_grad():
        logits, labels = model(**{**batch, "labels": None}).logits[:, :-1], batch["labels"][:, 1:]
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
    changes = {"max_steps": 1, "label_smoothing_factor": smoothing}
    trainer = PerToken(model, arguments(gptrio, **changes), collate, data)
    assert trainer.train().training_loss == pytest.approx(expected.item(), rel=1e-5)


def test_the_first_labels_count_by_default_as_in_the_reference():
    torch.manual_seed(1)
    data, (_, model) = rows_for("GPT2LMHeadModel", 6), pair_of("GPT2LMHeadModel")
    batch = collate(data)
    with torch.no_grad():
        mean = model(**batch).loss.item()
    count, rows = int(batch["attention_mask"].sum()), len(data)
    trainer = gptrio.Trainer(model, arguments(gptrio, max_steps=1), collate, data)
    assert trainer.train().training_loss == pytest.approx(mean * (count - rows) / count, rel=1e-5)


def test_a_batch_without_labels_that_count_adds_nothing():
    name = "GPT2ForTokenClassification"
    torch.manual_seed(1)
    data = ragged_rows(name, 4)
    for row in data[2:]:
        row["labels"] = [-100] * len(row["labels"])
    changes = {"max_steps": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    _, model = pair_of(name)
    with torch.no_grad():
        expected = model(**collate(data)).loss.item()
    loss = gptrio.Trainer(model, arguments(gptrio, **changes), collate, data).train().training_loss
    assert loss == pytest.approx(expected, rel=1e-5)


def test_weights_are_shares_of_labels_or_else_of_rows():
    labels = [torch.tensor([[1, -100, 2]]), torch.tensor([[3, -100, -100]])]
    assert batch_weights([{"labels": each} for each in labels]) == pytest.approx([2 / 3, 1 / 3])
    assert batch_weights([{"labels": each} for each in labels], is_shifted=True) == [1.0, 0.0]
    assert batch_weights([{"input_ids": torch.zeros(rows, 2)} for rows in (3, 1)]) == [0.75, 0.25]
    assert batch_weights([{"a": 1}, {"a": 2}]) == [0.5, 0.5]


@pytest.mark.parametrize("is_shifted", [False, True])
def test_smoothing_is_that_of_torch(is_shifted):
    logits, labels = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    labels[0, 3] = -100
    kept = (logits[:, :-1], labels[:, 1:]) if is_shifted else (logits, labels)
    expected = F.cross_entropy(kept[0].flatten(0, 1), kept[1].flatten(), label_smoothing=0.3)
    smoother = LabelSmoother(0.3)
    torch.testing.assert_close(smoother({"logits": logits}, labels, shift_labels=is_shifted), expected)
    count = (kept[1] != -100).sum()
    torch.testing.assert_close(smoother((logits,), labels, is_shifted, num_items_in_batch=2 * count), expected / 2)
