"""Real data is learned as by Transformers' Trainer: the same rows, and the same losses at every update.

The test marked `long` learns whole data sets, and holds the figures of the documentation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from _real_data import SHOWN, Problem
from _real_problems import PROBLEMS, Questions
from tests.cases import first

QUICK: dict[str, Any] = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,  # several batches of different widths
    "logging_steps": 1,
    "adam_epsilon": 1e-6,  # with 1e-8 the rounding of gradients that are nearly zero would move weights
}
NAMES = ["spam", "intents-lora", "entities", "questions-en", "questions-zh", "characters"]


def problems(name: str, data: Path, rows: int, changes: dict[str, Any]) -> list[Problem]:
    return [PROBLEMS[name](data, library, rows, changes) for library in ("gptrio", "transformers")]


def losses(trainer: Any) -> list[float]:
    return [
        entry[name]
        for entry in trainer.state.log_history
        for name in ("loss", "grad_norm", "eval_loss")
        if name in entry
    ]


@pytest.mark.parametrize("name", first(NAMES, 3))
def test_updates_on_real_rows_equal_the_reference_s(
    name: str, reference_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Questions, "length", 96)
    monkeypatch.setattr(PROBLEMS["questions-zh"], "length", 96)
    ours, theirs = problems(name, reference_dir, 3 if "questions" in name else 12, QUICK)
    assert ours.train_rows == theirs.train_rows and ours.test_rows == theirs.test_rows
    trainers = [problem.trainer(tmp_path) for problem in (ours, theirs)]
    for trainer in trainers:
        trainer.train()
    found, expected = (losses(trainer) for trainer in trainers)
    assert len(found) >= 12
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1.01e-4)  # losses are rounded to four digits
    results = [trainer.predict(problem.test_rows) for trainer, problem in zip(trainers, (ours, theirs), strict=True)]
    for one, other in zip(*(arrays(result) for result in results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)  # ragged rows are padded with -100
    for figure in {f"test_{shown}" for shown in SHOWN} & results[1].metrics.keys():
        assert results[0].metrics[figure] == pytest.approx(results[1].metrics[figure], abs=1e-3), figure


def arrays(result: Any) -> list[Any]:
    """Predictions and labels, which are pairs for question answering."""
    both = (result.predictions, result.label_ids)
    return [array for part in both for array in (part if isinstance(part, tuple) else (part,))]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "figure", "least", "most"),
    [
        ("spam", "accuracy", 0.97, 1.0),
        ("intents-lora", "accuracy", 0.75, 1.0),
        ("intents-lora", "merged", 0.0, 1e-5),
        ("intents-lora", "over_transformers", 0.0, 1e-5),
        ("questions-en", "exact_match", 0.9, 1.0),
        ("characters", "loss", 0.0, 1.90),
    ],
)
def test_whole_data_sets_are_learned(
    learned: Callable[[str], dict[str, float]], name: str, figure: str, least: float, most: float
) -> None:
    assert least <= learned(name)[figure] <= most


@pytest.fixture(scope="module")
def learned(reference_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, float]]:
    """Figures of a whole run of a problem, which is run once."""

    @functools.cache
    def figures(name: str) -> dict[str, float]:
        problem, folder = PROBLEMS[name](reference_dir), tmp_path_factory.mktemp(name)
        trainer = problem.trainer(folder)
        trainer.train()
        return problem.figures(trainer, folder)

    return figures
