"""Training in two processes (gloo, on the CPU) equals training in one, is resumed exactly, and stops as one."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from gptrio import GPT2LMHeadModel
from gptrio.errors import GptrioWarning
from tests.unit.training import rank_runs
from tests.unit.training.processes import run_ranks, start_ranks
from tests.unit.training.rank_runs import Case

CASES = [
    Case("GPT2LMHeadModel", {"include_num_input_tokens_seen": True}),
    Case("GPTNeoXForCausalLM", {"label_smoothing_factor": 0.1}),
    Case("GPTNeoForSequenceClassification", {}),
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


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_equals_an_undisturbed_one_on_every_rank(tmp_path: Path, way: str) -> None:
    for undisturbed, resumed in run_ranks(rank_runs.resume_exactly, tmp_path, WAYS[way]):
        for name, value in undisturbed.items():
            assert resumed[name] == value, name


@pytest.mark.parametrize("way", WAYS)
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
def test_a_save_that_fails_on_one_rank_is_told_on_all_and_loses_nothing(tmp_path: Path, way: str) -> None:
    found = run_ranks(rank_runs.fail_to_save, tmp_path, WAYS[way])
    for rank, runs in enumerate(found):
        cause = r"\[Errno 28\] No space left on device" if rank == 1 else "rank 1 failed: OSError: .*No space left"
        (warning,), error, step = runs["Failing"]
        assert re.search(f"checkpoint-2 could not be written: {cause}.* The training goes on", warning)
        assert (error, step) == ("", 6)
        _, error, step = runs["FailingTwice"]
        assert re.match(f"CheckpointError: .*checkpoint-4 could not be written: {cause}", error)
        assert step == 4
    assert rank_runs.files(tmp_path / "Failing") == [f"checkpoint-{number}" for number in (1, 3, 4, 5, 6)]
    assert rank_runs.files(tmp_path / "FailingTwice") == ["checkpoint-1", "checkpoint-2"]


def test_a_signal_or_a_callback_on_one_rank_stops_all_after_one_update(tmp_path: Path) -> None:
    for runs in run_ranks(rank_runs.stop_unevenly, tmp_path):
        assert runs == {"Interrupt": ("SystemExit: 143", 3), "StopOnRankOne": ("", 4)}
    assert rank_runs.files(tmp_path / "Interrupt") == ["checkpoint-3"]


def test_set_ups_that_do_not_fit_are_told(tmp_path: Path) -> None:
    for rank, found in enumerate(run_ranks(rank_runs.refuse, tmp_path)):
        assert "rows of train_dataset is 10 on rank 0, 12 on rank 1" in found["rows"][1]
        assert "gradient_accumulation_steps is 1 on rank 0, 2 on rank 1; seed is 0 on rank 0" in found["arguments"][1]
        assert re.search(r"trained values is \d+ on rank 0, \d+ on rank 1", found["model"][1])
        assert "works in one process alone" in found["batch"][1]
        assert "divide it by 2" in found["split"][1]
        assert "dispatch_batches=True, but every process reads the data" in found["dispatch"][1]
        assert "fsdp='hybrid_shard' does not go with" in found["hybrid"][1]
        assert "use no size: each block is a group" in found["size"][1]
        assert "transformer_layer_cls_to_wrap=['Blok'] is none of" in found["blocks"][1]
        assert (
            "optim='adafactor' does not go with parameters that are divided (fsdp); use adamw_torch"
            in found["optimizer"][1]
        )
        nan = [message for message in found["nan"][0] if "first tensor that is not finite" in message]
        assert len(nan) == (0 if rank else 1)
        assert rank or re.search(r"at update 1 \(rank 1\), rows \d+.*transformer.h.1.mlp", nan[0])


@pytest.mark.parametrize(("place", "way"), [("files", "whole"), ("manifest", "divided"), ("name", "divided")])
def test_two_processes_that_are_killed_in_a_save_end_with_the_same_weights(
    tmp_path: Path, place: str, way: str
) -> None:
    undisturbed = run_ranks(rank_runs.save_until_killed, tmp_path / "undisturbed", "", WAYS[way])
    path = tmp_path / "killed"
    started = start_ranks(rank_runs.save_until_killed, path, place, WAYS[way])
    while not (path / "blocked").exists():
        assert all(process.is_alive() for process, _ in started)
        time.sleep(0.02)
    assert any(name.startswith(".checkpoint-2.tmp-") for name in rank_runs.files(path))
    for process, _ in started:
        process.kill()
    for process, _ in started:
        process.join()
    assert run_ranks(rank_runs.save_until_killed, path, "", WAYS[way]) == undisturbed
    assert rank_runs.files(path) == ["blocked", "checkpoint-5", "checkpoint-6"]
