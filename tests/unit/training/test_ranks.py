"""Training in two processes (gloo, on the CPU) equals training in one, is resumed exactly, and stops as one."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from gptrio import GPT2LMHeadModel
from gptrio.errors import GptrioWarning
from tests import cases
from tests.unit.training import rank_runs
from tests.unit.training.processes import run_ranks
from tests.unit.training.rank_runs import Case

CASES = [
    Case("GPT2LMHeadModel", {"include_num_input_tokens_seen": True}),
    Case("GPTNeoXForCausalLM", {"label_smoothing_factor": 0.1}),
    Case("GPTNeoForSequenceClassification", {"logging_steps": 4}),
    Case("GPT2ForTokenClassification", {"gradient_checkpointing": True}),
]
OTHER = {"whole": "divided", "divided": "whole"}
WAYS = {"whole": {}, "divided": {"fsdp": "full_shard"}}  # weights in each process
AS_TWO = {"gradient_accumulation_steps": 4}  # in one process: the rows of two processes that accumulate two batches


def check_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Runs that compute the same in another order."""
    assert one["steps"] == other["steps"]
    assert one["losses"] == pytest.approx(other["losses"], abs=1.01e-4)  # which the log rounds to 1e-4
    assert one["total"] == pytest.approx(other["total"], rel=1e-6)
    assert one["norms"] == pytest.approx(other["norms"], rel=1e-5)
    assert (one["rates"], one["flos"], one["tokens"]) == (other["rates"], other["flos"], other["tokens"])
    for name, value in other["weights"].items():
        np.testing.assert_allclose(one["weights"][name], value, rtol=0, atol=1e-4, err_msg=name)


DIVIDED = [
    Case("GPT2LMHeadModel", {"fsdp": "full_shard", "gradient_checkpointing": True}),
    Case("GPTNeoXForCausalLM", {"fsdp": "full_shard auto_wrap", "include_num_input_tokens_seen": True}),
    Case("GPTNeoForSequenceClassification", {"fsdp": "shard_grad_op"}),
    Case("GPT2ForTokenClassification", {"fsdp": "full_shard offload", "optim": "sgd"}),
]


@pytest.mark.parametrize("cases", [CASES, DIVIDED], ids=WAYS)
def test_two_processes_equal_one(tmp_path: Path, cases: list[Case]) -> None:
    first, second = run_ranks(rank_runs.train_all, tmp_path / "two", cases)
    alone = rank_runs.train_all(
        tmp_path / "one", [Case(name, {**changes, **AS_TWO, "fsdp": ""}) for name, changes in cases]
    )
    for one, other, expected in zip(first, second, alone, strict=True):
        check_equal(one, expected)
        check_equal(other, expected)
        for name, value in one["weights"].items():
            np.testing.assert_array_equal(value, other["weights"][name])
        for result in (one, other):
            assert result["evaluation"] == pytest.approx(expected["evaluation"], rel=1e-6)
            np.testing.assert_allclose(result["predictions"], expected["predictions"], rtol=0, atol=1e-4)
            np.testing.assert_array_equal(result["labels"], expected["labels"])


@pytest.mark.long  # each process imports PEFT
@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_an_adapter_is_trained_over_divided_weights(tmp_path: Path) -> None:
    first, _ = run_ranks(rank_runs.adapt, tmp_path / "two", WAYS["divided"])
    alone = rank_runs.adapt(tmp_path / "one", AS_TWO)
    check_equal(first, alone)
    assert first["evaluation"] == pytest.approx(first["best"], rel=1e-6)
    saved = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two")]
    for name, value in saved[0].items():
        np.testing.assert_allclose(saved[1][name], value, rtol=0, atol=1e-4, err_msg=name)


def test_data_of_all_kinds_is_divided(tmp_path: Path) -> None:
    first, second = run_ranks(rank_runs.read, tmp_path / "two")
    alone = rank_runs.read(tmp_path / "one", **AS_TWO)
    for name, expected in alone.items():
        for found in (first[name], second[name]):
            assert found["evaluation"] == pytest.approx(expected["evaluation"], rel=1e-5), name
            if name != "whole batches":  # of which one process has another number
                check_equal(found, expected)


@pytest.mark.parametrize("way", cases.first(WAYS))
def test_a_resumed_run_equals_an_undisturbed_one_on_every_rank(tmp_path: Path, way: str) -> None:
    for undisturbed, resumed in run_ranks(rank_runs.resume_exactly, tmp_path, WAYS[way]):
        for name, value in undisturbed.items():
            assert resumed[name] == value, name


@pytest.mark.filterwarnings("ignore:the checkpoint goes on with its own save_steps")
@pytest.mark.parametrize("way", cases.first(["divided", "whole"]))
def test_two_processes_go_on_from_a_checkpoint_of_one_and_one_from_that_of_two(tmp_path: Path, way: str) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = rank_runs.train(tmp_path / "one", None, {**saving, **AS_TWO})
    for each in run_ranks(rank_runs.train, tmp_path / "two", None, {**saving, **WAYS[way]}):
        check_equal(each, whole)
    for step in (2, 4):
        name = f"checkpoint-{step}"
        resumed = run_ranks(rank_runs.train, tmp_path / f"two {step}", tmp_path / "one" / name, WAYS[way])
        for each in resumed:
            check_equal(each, whole)
        with pytest.warns(GptrioWarning, match="gradient_accumulation_steps 2 -> 4"):
            found = rank_runs.train(tmp_path / f"one {step}", tmp_path / "two" / name, AS_TWO)
        check_equal(found, whole)
    other = run_ranks(rank_runs.train, tmp_path / "other", tmp_path / "two" / "checkpoint-2", WAYS[OTHER[way]])
    for each in other:
        check_equal(each, whole)
    read = GPT2LMHeadModel.from_pretrained(tmp_path / "two" / "checkpoint-6")
    assert read.config.architectures == ["GPT2LMHeadModel"]
    for name, value in read.named_parameters():
        np.testing.assert_allclose(value.detach(), whole["weights"][name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_a_rank_computes_as_it_is_told_and_keeps_its_share(tmp_path: Path, way: str) -> None:
    alone = rank_runs.trainer_of(tmp_path / "one").evaluate()["eval_loss"]
    for found in run_ranks(rank_runs.look, tmp_path, WAYS[way]):
        assert found["checkpoint"]
        assert found["losses without scores"] == 2  # of the batches of the one update
        assert found["evaluated"] == pytest.approx(alone, rel=1e-6)
        parts = 2 if way == "divided" else 1
        assert found["parameters"] == pytest.approx(found["all"] / parts, rel=0.01)
        assert found["moments"] == 2 * found["parameters"]
        if way == "whole":
            assert (found["wrapper"], found["bucket"], found["default"]) == ([True, False], 3 << 20, False)


def test_metrics_of_batches_are_over_all_ranks(tmp_path: Path) -> None:
    for found in run_ranks(rank_runs.by_batches, tmp_path):
        assert found == [[(4, False), (1, True)], 5.0, [4, 1], [3.0, 1.5, [1.0, 2.0]]]


def test_each_machine_has_its_checkpoint(tmp_path: Path) -> None:
    for names, files in run_ranks(rank_runs.on_two_machines, tmp_path):
        assert {"checkpoint-2", "checkpoint-4", "checkpoint-6", "model.safetensors"} <= set(names)
        assert {"manifest.json", "model.safetensors", "training_state.json"} <= set(files)


@pytest.mark.long  # two further launches, of processes that share two cores
def test_three_and_four_processes_equal_one_and_go_on_from_each_other(tmp_path: Path) -> None:
    name = "GPT2ForSequenceClassification"  # whose head of three rows leaves the fourth rank none
    changes = {"class_name": name, "gradient_accumulation_steps": 1, "fsdp": "full_shard"}
    for processes, before in ((3, None), (4, "three")):
        saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2 if before else 1}
        path = tmp_path / {3: "three", 4: "four"}[processes]
        resume = tmp_path / before / "checkpoint-1" if before else None
        found = run_ranks(rank_runs.train, path, resume, {**changes, **saving}, processes=processes)
        step = {"gradient_accumulation_steps": processes, "fsdp": ""}
        with nullcontext() if before is None else pytest.warns(GptrioWarning, match="world_size 3 -> 1"):
            alone = rank_runs.train(tmp_path / f"one {processes}", resume, {**changes, **saving, **step})
        if processes == 3:
            check_equal(found[0], alone)
        for each in found[1:]:
            for key, value in found[0]["weights"].items():
                np.testing.assert_array_equal(each["weights"][key], value)
