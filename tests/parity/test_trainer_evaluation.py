"""Evaluation and prediction of our Trainer give the reference's metrics, arrays and calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import gptrio
from tests.training_pair import assert_same_history, collate, rows_for, trainers

CLASSES = [
    "GPT2LMHeadModel",
    "GPTNeoForSequenceClassification",
    "GPTNeoXForTokenClassification",
    "GPT2ForQuestionAnswering",
]
EVALUATION = {"per_device_eval_batch_size": 4}


def assert_same(ours: Any, theirs: Any) -> None:
    """Check arrays in the same structure."""
    if isinstance(theirs, (tuple, list)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
        return
    assert isinstance(ours, np.ndarray) == isinstance(theirs, np.ndarray)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert ours.dtype == theirs.dtype


def assert_same_metrics(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert_same_history([ours], [theirs])


@pytest.mark.parametrize("class_name", CLASSES)
@pytest.mark.parametrize("is_joined", [True, False])
def test_metrics_and_predictions_are_the_reference_s(class_name, is_joined):
    seen: list[Any] = []

    def compute_metrics(pair):
        seen.append((pair.predictions, pair.label_ids, pair.inputs, pair.losses))
        return {"rows": float(len(pair.label_ids)), "numpy": np.float32(2.5)}

    data = rows_for(class_name, 11)
    changes = {**EVALUATION, "include_for_metrics": ["inputs", "loss"], "eval_do_concat_batches": is_joined}
    pair = trainers(class_name, changes, eval_dataset=data, compute_metrics=compute_metrics)
    theirs, ours = (trainer.evaluate() for trainer in pair)
    assert_same_metrics(ours, theirs)
    assert_same(seen[1], seen[0])
    theirs, ours = (trainer.predict(data[:5]) for trainer in pair)
    assert_same(ours.predictions, theirs.predictions)
    assert_same(ours.label_ids, theirs.label_ids)
    assert_same_metrics(ours.metrics, theirs.metrics)


def test_without_metrics_only_the_loss_is_computed_and_logged():
    data = rows_for("GPT2LMHeadModel", 7)
    pair = trainers("GPT2LMHeadModel", EVALUATION, eval_dataset={"a": data[:3], "b": data[3:]})
    theirs, ours = (trainer.evaluate() for trainer in pair)
    assert_same_metrics(ours, theirs)
    assert_same_history(pair[1].state.log_history, pair[0].state.log_history)
    theirs, ours = (trainer.evaluate({"c": data}, metric_key_prefix="other") for trainer in pair)
    assert_same_metrics(ours, theirs)


def test_data_without_labels_has_predictions_and_no_loss():
    data = [{"input_ids": row["input_ids"]} for row in rows_for("GPT2ForSequenceClassification", 5)]
    theirs, ours = (trainer.predict(data) for trainer in trainers("GPT2ForSequenceClassification", EVALUATION))
    assert ours.label_ids is None and theirs.label_ids is None
    assert_same(ours.predictions, theirs.predictions)
    assert_same_metrics(ours.metrics, theirs.metrics)


def test_metrics_can_be_computed_batch_by_batch():
    calls: list[Any] = []

    def compute_metrics(pair, compute_result):
        calls.append((pair.predictions.shape, compute_result, None if pair.losses is None else pair.losses.shape))
        return {"batches": len(calls)} if compute_result else {}

    changes = {**EVALUATION, "batch_eval_metrics": True, "include_for_metrics": ["loss"]}
    data = rows_for("GPT2ForSequenceClassification", 10)
    pair = trainers("GPT2ForSequenceClassification", changes, eval_dataset=data, compute_metrics=compute_metrics)
    metrics = []
    for trainer in pair:
        metrics.append((trainer.evaluate(), calls.copy()))
        calls.clear()
    assert metrics[1][0]["eval_batches"] == 3
    assert_same_metrics(metrics[1][0], metrics[0][0])
    assert [call[:2] for call in metrics[1][1]] == [call[:2] for call in metrics[0][1]]


def test_logits_can_be_reduced_before_they_are_kept():
    data, shapes = rows_for("GPTNeoXForCausalLM", 9), []

    def preprocess(logits, labels):
        shapes.append((tuple(logits.shape), tuple(labels.shape)))
        return logits.argmax(-1)

    changes = {**EVALUATION, "eval_accumulation_steps": 2}
    options = {"eval_dataset": data, "preprocess_logits_for_metrics": preprocess}
    theirs, ours = (t.predict(data) for t in trainers("GPTNeoXForCausalLM", changes, **options))
    assert_same(ours.predictions, theirs.predictions)
    assert shapes[:3] == shapes[3:]


def test_label_smoothing_changes_the_loss_of_an_evaluation_as_in_the_reference():
    for class_name in ("GPT2LMHeadModel", "GPTNeoForTokenClassification"):
        data = rows_for(class_name, 6)
        pair = trainers(class_name, {**EVALUATION, "label_smoothing_factor": 0.2}, eval_dataset=data)
        theirs, ours = (trainer.evaluate() for trainer in pair)
        assert_same_metrics(ours, theirs)


def test_a_warning_says_when_predictions_will_fill_the_memory(monkeypatch):
    monkeypatch.setattr("gptrio.training.evaluation._MUCH", 1000)
    _, ours = trainers("GPT2LMHeadModel", EVALUATION)
    with pytest.warns(gptrio.GptrioWarning, match="the predictions will take .* preprocess_logits_for_metrics"):
        ours.predict(rows_for("GPT2LMHeadModel", 6))


@pytest.mark.parametrize("dtype", ["bf16_full_eval"])
def test_a_whole_evaluation_can_be_in_bfloat16(dtype):
    data = rows_for("GPT2LMHeadModel", 6)
    theirs, ours = (t.evaluate(data) for t in trainers("GPT2LMHeadModel", {**EVALUATION, dtype: True}))
    assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-2)


def test_the_best_model_is_kept_and_loaded_as_in_the_reference():
    data = rows_for("GPT2ForSequenceClassification", 12)
    changes = {
        **EVALUATION,
        "max_steps": 6,
        "learning_rate": 0.05,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
    other = [{**row, "labels": (row["labels"] + 1) % 3} for row in data]  # what is learned makes it worse
    options = {"train_dataset": data, "eval_dataset": other}
    pair = trainers("GPT2ForSequenceClassification", changes, **options)
    for trainer in pair:
        trainer.train()
    states = [trainer.state for trainer in pair]
    assert states[1].best_global_step == states[0].best_global_step
    assert states[1].best_metric == pytest.approx(states[0].best_metric, abs=1e-5)
    assert states[1].best_model_checkpoint.endswith(f"checkpoint-{states[1].best_global_step}")
    with torch.no_grad():
        batch = collate(data)
        torch.testing.assert_close(
            pair[1].model.eval()(**batch).logits, pair[0].model.eval()(**batch).logits, atol=1e-4, rtol=1e-4
        )
    assert states[1].best_global_step < 6  # else the last model would be the best
    assert isinstance(pair[0], transformers.Trainer)
