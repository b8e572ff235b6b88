"""Results of training and evaluation, figures of speed, full determinism, and choices, beside the reference's."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch
from transformers import trainer_utils as reference
from transformers import training_args as reference_args

import gptrio
from gptrio import EvalPrediction, UnknownNameError
from gptrio.training import enums, results

ENUMS = (
    "IntervalStrategy SaveStrategy EvaluationStrategy HubStrategy SchedulerType FSDPOption OptimizerNames ParallelMode"
)


@pytest.mark.parametrize("more", [{}, {"inputs": 3}, {"losses": 4}, {"inputs": 3, "losses": 4}])
def test_predictions_unpack_as_in_the_reference(more):
    parts = {name: np.full(2, value) for name, value in more.items()}
    ours, expected = (kind(np.ones(2), np.zeros(2), **parts) for kind in (EvalPrediction, reference.EvalPrediction))
    assert [part.tolist() for part in ours] == [part.tolist() for part in expected]
    assert ours[1].tolist() == [0, 0]
    assert (ours.inputs is None, ours.losses is None) == (expected.inputs is None, expected.losses is None)
    for wrong in (-1, len(ours.elements)):
        with pytest.raises(IndexError, match=f"part {wrong} of an EvalPrediction does not exist"):
            ours[wrong]


def test_results_have_the_references_fields():
    for name in ("EvalLoopOutput", "PredictionOutput", "TrainOutput"):
        assert getattr(results, name)._fields == getattr(reference, name)._fields


def test_figures_of_speed_are_the_references(monkeypatch):
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start + 2.71828)
    for counts in ({}, {"num_samples": 10}, {"num_samples": 0, "num_steps": 7, "num_tokens": 1234}):
        assert results.speed_metrics("train", start, **counts) == reference.speed_metrics("train", start, **counts)
    assert results.speed_metrics("x", start + 2.71828, 5) == reference.speed_metrics("x", start + 2.71828, 5)


@pytest.mark.parametrize("name", ENUMS.split())
def test_choices_are_the_references(name):
    expected = getattr(reference, name, None) or getattr(reference_args, name)
    assert {item.name: item.value for item in getattr(enums, name)} == {item.name: item.value for item in expected}


def test_unknown_choices_are_key_and_value_errors():
    for error in (ValueError, KeyError, UnknownNameError):
        with pytest.raises(error, match=r"'stps' is not a valid IntervalStrategy; expected one of no, steps, epoch"):
            enums.IntervalStrategy("stps")


def test_full_determinism_is_the_references(monkeypatch):
    variables = ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC")
    for name in (*variables, "ASCEND_LAUNCH_BLOCKING", "HCCL_DETERMINISTIC"):  # the last are for other hardware
        monkeypatch.setenv(name, "before")

    def settings(function):
        function(11)
        cudnn = torch.backends.cudnn
        drawn = (torch.rand(3).tolist(), np.random.rand(3).tolist())
        set_now = (torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark)
        return drawn, set_now, [os.environ[name] for name in variables]

    before = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    try:
        ours = settings(gptrio.enable_full_determinism)
        assert ours[1] == (True, True, False)
        assert ours == settings(reference.enable_full_determinism)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
