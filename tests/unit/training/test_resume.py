"""A resumed run equals one that nothing stopped, byte for byte: weights, optimizer, schedule and log."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from gptrio.errors import CheckpointError, CheckpointFormatError, GptrioWarning
from gptrio.training.run_folder import RunFolder
from tests.cases import first
from tests.unit.training.trainer_run import new_trainer, weights


class Case(NamedTuple):
    """Rows of the data, two of which are a batch; batches of an update; the update after which a run stops."""

    rows: int
    accumulation: int
    step: int


CASES = {
    "within an epoch": Case(10, 1, 3),
    "within an epoch, accumulating": Case(12, 2, 2),
    "at the end of an epoch": Case(10, 1, 5),
    "at the end of an epoch, after a partial group": Case(10, 2, 3),
    "within an epoch that ends with a partial group": Case(10, 2, 2),
}


def outcome(trainer: Any) -> dict[str, Any]:
    """What has to be equal: all but times."""
    log = [
        {key: value for key, value in entry.items() if not key.endswith(("runtime", "per_second"))}
        for entry in trainer.state.log_history
    ]
    state = trainer.optimizer.state_dict()
    moments = [torch.as_tensor(value).tolist() for values in state["state"].values() for value in values.values()]
    groups = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
    return {
        "weights": weights(trainer),
        "log": log,
        "moments": moments,
        "groups": groups,
        "schedule": trainer.lr_scheduler.state_dict(),
        "step": trainer.state.global_step,
    }


def check_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name in other:
        assert one[name] == other[name], name


@pytest.mark.parametrize(
    ("case", "workers"),
    first([*((case, 0) for case in CASES), *((case, 2) for case in reversed(CASES))], len(CASES) + 2, 2),
)
def test_resumed_run_equals_an_undisturbed_one(tmp_path: Path, case: str, workers: int) -> None:
    rows, accumulation, step = CASES[case]
    changes = {
        "save_steps": step,
        "save_total_limit": None,
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": workers,
    }
    undisturbed = new_trainer(tmp_path, rows, **changes)
    undisturbed.train()
    resumed = new_trainer(tmp_path, rows, first_weights=2, **changes)
    torch.manual_seed(77)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    check_equal(outcome(resumed), outcome(undisturbed))


@pytest.mark.filterwarnings("ignore:this processor has no bfloat16 products")
@pytest.mark.parametrize(
    "changes",
    [
        {"optim": "sgd", "lr_scheduler_type": "cosine"},
        {"optim": "adafactor", "lr_scheduler_type": "polynomial"},
        {"optim": "adagrad", "lr_scheduler_type": "constant_with_warmup"},
        {"optim": "rmsprop", "lr_scheduler_type": "inverse_sqrt"},
        {"group_by_length": True},
        {"data_seed": 5},
        {"max_steps": 7},
        {"bf16": True},
    ],
    ids=str,
)
def test_resuming_is_exact_with_other_options(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = {"save_steps": 3, "save_total_limit": None, **changes}
    undisturbed = new_trainer(tmp_path, **settings)
    undisturbed.train()
    resumed = new_trainer(tmp_path, first_weights=2, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    check_equal(outcome(resumed), outcome(undisturbed))


def test_newest_whole_checkpoint_is_taken_and_the_broken_one_is_named(tmp_path: Path) -> None:
    undisturbed = new_trainer(tmp_path, save_total_limit=None)
    undisturbed.train()
    (tmp_path / "checkpoint-10" / "model.safetensors").write_bytes(b"")
    (tmp_path / "checkpoint-9" / "training_state.json").unlink()
    resumed = new_trainer(tmp_path, first_weights=2)
    message = r"back to .*-8, as .*-10 is not whole: model\.safetensors.*-9 is not whole: training_state\.json"
    with pytest.warns(GptrioWarning, match=message):
        resumed.train(resume_from_checkpoint=True)
    check_equal(outcome(resumed), outcome(undisturbed))


def test_broken_checkpoint_that_is_asked_for_is_an_error(tmp_path: Path) -> None:
    new_trainer(tmp_path, max_steps=2).train()
    (tmp_path / "checkpoint-2" / "manifest.json").unlink()
    with pytest.raises(CheckpointFormatError, match=r"checkpoint-2 is not whole: manifest\.json is missing"):
        new_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_changed_batch_is_named(tmp_path: Path) -> None:
    new_trainer(tmp_path, max_steps=2).train()
    with pytest.warns(GptrioWarning, match="gradient_accumulation_steps 1 -> 2, rows 10 -> 12, seed 42 -> 7"):
        new_trainer(tmp_path, 12, max_steps=3, gradient_accumulation_steps=2, seed=7).train(True)


def test_second_trainer_on_a_folder_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path), pytest.raises(CheckpointError, match="in use by another training"):
        new_trainer(tmp_path).train()


def test_best_checkpoint_and_two_are_kept(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, save_total_limit=1, max_steps=4)
    trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]


def test_workers_of_any_start_method_get_neither_the_model_nor_the_lock(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path)
    with trainer._run_folder:
        loader = trainer.get_train_dataloader()
        content = pickle.dumps(loader.collate_fn)
    assert len(content) < 2000
    rows = [{"input_ids": torch.ones(2), "labels": torch.ones(2), "other": 1}]
    assert sorted(pickle.loads(content)(rows)) == ["input_ids", "labels"]
