"""Curve parity: runs of our Trainer equal those of the reference's, from one initialisation, update by update."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.cases import first
from tests.training_pair import assert_same_history, assert_same_weights, trainers

CURVES = ["GPT2LMHeadModel", "GPTNeoForSequenceClassification", "GPTNeoXForTokenClassification"]
CURVES += ["GPTNeoXForQuestionAnswering"]
OTHERS = ["GPTNeoXForCausalLM", "GPT2ForSequenceClassification", "GPTNeoForTokenClassification"]
OTHERS += ["GPT2ForQuestionAnswering"]
REST = ["GPTNeoForCausalLM", "GPTNeoXForSequenceClassification", "GPT2ForTokenClassification"]
REST += ["GPTNeoForQuestionAnswering"]
RUNS = [*((name, 18) for name in CURVES), *((name, 6) for name in OTHERS + REST), *((name, 60) for name in CURVES)]


def losses_of(trainer: Any) -> list[float]:
    """Record the loss of every batch, unrounded."""
    losses: list[float] = []
    step = trainer.training_step

    def recorded(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(*args, **kwargs)
        losses.append(loss.item())
        return loss

    trainer.training_step = recorded
    return losses


@pytest.mark.parametrize(("class_name", "updates"), first(RUNS, len(CURVES + OTHERS), 2))
def test_a_run_equals_the_reference_s(class_name, updates):
    changes = {"max_steps": updates, "warmup_steps": 3, "lr_scheduler_type": "cosine"}
    theirs, ours = trainers(class_name, changes)
    recorded = [losses_of(trainer) for trainer in (theirs, ours)]
    outputs = [trainer.train() for trainer in (theirs, ours)]
    assert len(recorded[0]) == 3 * updates
    np.testing.assert_allclose(recorded[1], recorded[0], rtol=1e-5, atol=1e-5)
    assert_same_history(ours.state.log_history, theirs.state.log_history)
    assert_same_weights(ours.model, theirs.model)
    assert outputs[0].global_step == outputs[1].global_step == updates
    assert outputs[1].training_loss == pytest.approx(outputs[0].training_loss, rel=1e-5)
    assert outputs[1].metrics.keys() == outputs[0].metrics.keys() | {"total_flos"}  # which printing pops there
