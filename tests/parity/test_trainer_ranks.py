"""Two processes of our Trainer against two of the reference's, on rows that fill every batch of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.unit.training.processes import run_ranks

CASES = [
    ("GPT2LMHeadModel", {}),
    ("GPTNeoXForCausalLM", {"average_tokens_across_devices": False}),
    ("GPTNeoXForSequenceClassification", {}),
]


def train_both(class_name: str, changes: dict[str, Any]) -> list[dict[str, Any]]:
    """The log, the weights and the predictions of the reference and of ours."""
    import torch

    from tests.training_pair import collate, rows_for, trainers

    torch.manual_seed(0)
    rows = rows_for(class_name, 24)
    changes = {"gradient_accumulation_steps": 2, "num_train_epochs": 2, "eval_strategy": "epoch", "seed": 3, **changes}
    pair = trainers(class_name, changes, train_dataset=rows, eval_dataset=rows[:8], data_collator=collate)
    found = []
    for trainer in pair:
        trainer.train()
        predicted = trainer.predict(rows[4:12])
        weights = {name: value.detach().numpy().copy() for name, value in trainer.model.named_parameters()}
        found.append({"log": trainer.state.log_history, "weights": weights, "predictions": predicted.predictions})
    return found


@pytest.mark.long  # both processes import Transformers
@pytest.mark.parametrize(("class_name", "changes"), CASES)
def test_two_processes_train_as_the_reference_s_do(class_name: str, changes: dict[str, Any]) -> None:
    for reference, ours in run_ranks(train_both, class_name, changes):
        for one, other in zip(reference["log"], ours["log"], strict=True):
            assert one.keys() == other.keys()
            for name in {"loss", "grad_norm", "learning_rate", "epoch", "eval_loss"} & one.keys():
                assert other[name] == pytest.approx(one[name], rel=1e-5, abs=1.01e-4 if name == "loss" else 0), name
        np.testing.assert_allclose(ours["predictions"], reference["predictions"], rtol=0, atol=1e-4)
        for name, value in reference["weights"].items():
            np.testing.assert_allclose(ours["weights"][name], value, rtol=0, atol=1e-4, err_msg=name)
