"""Two processes that fail, are stopped or are killed: all of them know, and nothing is lost."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from tests.unit.training import rank_faults
from tests.unit.training.processes import results, run_ranks, start_ranks
from tests.unit.training.test_ranks import WAYS


@pytest.mark.parametrize("way", WAYS)
def test_a_save_that_fails_on_one_rank_is_told_on_all_and_loses_nothing(tmp_path: Path, way: str) -> None:
    found = run_ranks(rank_faults.fail_to_save, tmp_path, WAYS[way])
    for rank, runs in enumerate(found):
        cause = r"\[Errno 28\] No space left on device" if rank == 1 else "rank 1 failed: OSError: .*No space left"
        (warning,), error, step = runs["Failing"]
        assert re.search(f"checkpoint-2 could not be written: {cause}.* The training goes on", warning)
        assert (error, step) == ("", 6)
        _, error, step = runs["FailingTwice"]
        assert re.match(f"CheckpointError: .*checkpoint-4 could not be written: {cause}", error)
        assert step == 4
    assert rank_faults.files(tmp_path / "Failing") == [f"checkpoint-{number}" for number in (1, 3, 4, 5, 6)]
    assert rank_faults.files(tmp_path / "FailingTwice") == ["checkpoint-1", "checkpoint-2"]


def test_a_signal_or_a_callback_on_one_rank_stops_all_after_one_update(tmp_path: Path) -> None:
    for runs in run_ranks(rank_faults.stop_unevenly, tmp_path):
        assert runs == {"Interrupt": ("SystemExit: 143", 3), "StopOnRankOne": ("", 4)}
    assert rank_faults.files(tmp_path / "Interrupt") == ["checkpoint-3"]


def test_set_ups_that_do_not_fit_are_told(tmp_path: Path) -> None:
    for rank, found in enumerate(run_ranks(rank_faults.refuse, tmp_path)):
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
        assert "fsdp_config has no setting 'ofload_params'; did you mean 'offload_params'?" in found["setting"][1]
        assert [message[:44] for message in found["idle"]] == (
            [] if rank else ["fsdp_config's use_orig_params has no effect:"]
        )
        assert "transformer.wte.weight is divided among processes; Trainer.save_model puts" in found["save"][1]
        divided = [message for message in found["divided nan"][0] if "not searched for in divided weights" in message]
        assert len(divided) == (0 if rank else 1)
        nan = [message for message in found["nan"][0] if "first tensor that is not finite" in message]
        assert len(nan) == (0 if rank else 1)
        assert rank or re.search(r"at update 1 \(rank 1\), rows \d+.*transformer.h.1.mlp", nan[0])


@pytest.mark.parametrize(("place", "way"), [("files", "whole"), ("name", "divided")])
def test_two_processes_that_are_killed_in_a_save_end_with_the_same_weights(
    tmp_path: Path, place: str, way: str
) -> None:
    undisturbed = run_ranks(rank_faults.save_until_killed, tmp_path / "undisturbed", "", WAYS[way])
    path = tmp_path / "killed"
    started = start_ranks(rank_faults.save_until_killed, path, place, WAYS[way])
    while not (path / "blocked").exists():
        assert all(process.is_alive() for process, _ in started)
        time.sleep(0.02)
    assert any(name.startswith(".checkpoint-2.tmp-") for name in rank_faults.files(path))
    for process, _ in started:
        process.kill()
    for process, _ in started:
        process.join()
    assert run_ranks(rank_faults.save_until_killed, path, "", WAYS[way]) == undisturbed
    assert rank_faults.files(path) == ["blocked", "checkpoint-5", "checkpoint-6"]


def test_a_process_that_is_killed_in_a_save_ends_the_other_and_the_save(tmp_path: Path) -> None:
    started = start_ranks(rank_faults.save_until_killed, tmp_path, "rank 1", {})
    while not (tmp_path / "blocked").exists():
        assert all(process.is_alive() for process, _ in started)
        time.sleep(0.02)
    started[1][0].kill()
    with pytest.raises(
        AssertionError, match=r"rank 0 failed: (?s:.*)ProcessLostError: another process of the run has ended"
    ):
        results(started[:1])
    started[1][0].join()
    assert rank_faults.files(tmp_path) == ["blocked", "checkpoint-1"]


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_that_are_killed_at_any_time_end_with_the_same_weights(tmp_path: Path, way: str) -> None:
    times, killed, in_saves, resumed = random.Random(7), 0, 0, 0
    undisturbed = run_ranks(rank_faults.save_until_killed, tmp_path / "undisturbed", "", WAYS[way])
    begin = time.perf_counter()
    run_ranks(rank_faults.save_until_killed, tmp_path / "timed", "", WAYS[way])
    duration, number = time.perf_counter() - begin, 0
    while killed < 25:
        path = tmp_path / str(number)
        started = start_ranks(rank_faults.save_until_killed, path, "", WAYS[way])
        started[0][0].join(times.uniform(0, duration))
        is_running = all(process.is_alive() for process, _ in started)
        for process, _ in started:
            process.kill()
            process.join()
        killed += is_running
        in_saves += any(path.glob(".checkpoint-*"))
        resumed += any(path.glob("checkpoint-*"))
        if killed % 5 == 0 or not is_running:
            assert run_ranks(rank_faults.save_until_killed, path, "", WAYS[way]) == undisturbed
            number += 1
    print(f"{killed} kills, {in_saves} of them during a save; resumed {resumed} times; {number} runs, all equal")
    assert resumed > 0
