"""`hyperparameter_search`: the trials, objectives and best run of the reference's Trainer, with Optuna."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import gptrio
from gptrio.errors import GptrioWarning, InputError, UnsupportedError
from gptrio.testing import tiny_config
from gptrio.trainer_utils import HPSearchBackend
from tests.cases import first

optuna = pytest.importorskip("optuna")
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "max_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 3,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}
ROWS = [
    {"input_ids": row, "labels": row} for row in torch.randint(257, (8, 6), generator=torch.Generator().manual_seed(0))
]


@pytest.fixture(scope="module")
def first_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = tiny_config("gpt2", hidden_size=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    gptrio.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def new_trainer(library: Any, path: Path, first_model: Path, **changes: Any) -> Any:
    """A trainer of either library that makes its model for every run."""
    arguments = library.TrainingArguments(str(path), **{**SETTINGS, **changes})
    return library.Trainer(
        model_init=lambda: library.GPT2LMHeadModel.from_pretrained(first_model),
        args=arguments, train_dataset=ROWS, eval_dataset=ROWS[:4],
    )  # fmt: skip


def space(trial: Any) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True),
        "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [1, 2]),
        "seed": trial.suggest_int("seed", 1, 9),
    }


def search(library: Any, path: Path, first_model: Path, **options: Any) -> tuple[Any, Any]:
    """The best run, and the trainer, of a search of four trials."""
    trainer = new_trainer(library, path, first_model)
    sampler = optuna.samplers.RandomSampler(seed=0)
    return trainer.hyperparameter_search(space, n_trials=4, sampler=sampler, **options), trainer


@pytest.mark.parametrize("direction", first(["maximize", "minimize"]))
def test_best_run_is_that_of_the_reference(tmp_path: Path, first_model: Path, direction: str) -> None:
    ours, trainer = search(gptrio, tmp_path / "ours", first_model, direction=direction)
    theirs, reference = search(transformers, tmp_path / "theirs", first_model, direction=direction)
    assert ours.run_id == theirs.run_id and ours.hyperparameters == theirs.hyperparameters
    assert ours.objective == pytest.approx(theirs.objective, abs=1e-5) and ours.run_summary is None
    folders = [sorted(path.name for path in (tmp_path / name).glob("*")) for name in ("ours", "theirs")]
    assert folders[0] == folders[1] == [f"run-{number}" for number in range(4)]
    assert {path.name for path in (tmp_path / "ours").glob("run-*/*")} == {"checkpoint-3"}
    for name in ("learning_rate", "seed", "per_device_train_batch_size"):  # those of the last trial, in both
        assert getattr(trainer.args, name) == getattr(reference.args, name)
    assert trainer.state.trial_params == reference.state.trial_params and trainer.hp_search_backend is None
    for each in trainer, reference:  # a run after the search has the output folder itself
        each.train()
    for name in ("ours", "theirs"):
        assert (tmp_path / name / "checkpoint-3").is_dir()


@pytest.mark.long
def test_a_search_for_several_objectives(tmp_path: Path, first_model: Path) -> None:
    def objectives(metrics: dict[str, float]) -> list[float]:
        return [metrics["eval_loss"], -metrics["eval_loss"]]

    options: dict[str, Any] = {"direction": ["minimize", "maximize"], "compute_objective": objectives}
    ours, _ = search(gptrio, tmp_path / "ours", first_model, **options)
    theirs, _ = search(transformers, tmp_path / "theirs", first_model, **options)
    assert [(run.run_id, run.hyperparameters) for run in ours] == [(run.run_id, run.hyperparameters) for run in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.objective == pytest.approx(other.objective, abs=1e-5)


def test_the_study_prunes_trials_and_names_are_the_callers(tmp_path: Path, first_model: Path) -> None:
    trainer = new_trainer(gptrio, tmp_path, first_model)
    steps: list[int] = []

    class Prunes(optuna.pruners.BasePruner):  # type: ignore[misc, name-defined] - optuna has no types here
        def prune(self, study: Any, trial: Any) -> bool:
            steps.append(trial.last_step)
            return bool(trial.number == 1)

    best = trainer.hyperparameter_search(
        space, n_trials=3, hp_name=lambda trial: f"number {trial.number}", pruner=Prunes(),
        sampler=optuna.samplers.RandomSampler(seed=0),
    )  # fmt: skip
    assert steps == [1, 2, 3, 1, 1, 2, 3] and best.run_id != "1"
    assert {path.name for path in tmp_path.iterdir() if any(path.glob("checkpoint-*"))} == {"number 0", "number 2"}
    assert trainer.state.trial_name == "number 2"


def test_objective_and_space_are_by_default_those_of_the_reference() -> None:
    from transformers import trainer_utils as theirs

    from gptrio import trainer_utils as ours

    measured = {"eval_loss": 2.0, "epoch": 1.0, "eval_runtime": 3.0, "eval_samples_per_second": 4.0}
    for metrics in (measured, {**measured, "eval_f1": 0.5, "eval_accuracy": 0.25}):
        assert ours.default_compute_objective(metrics) == theirs.default_compute_objective(metrics)
    trials = [optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)).ask() for _ in range(2)]
    assert ours.default_hp_space_optuna(trials[0]) == theirs.default_hp_space_optuna(trials[1])


def test_what_cannot_be_searched_says_why(tmp_path: Path, first_model: Path) -> None:
    trainer = new_trainer(gptrio, tmp_path, first_model)
    with pytest.raises(UnsupportedError, match=r"backend='ray': .* pass backend='optuna'"):
        trainer.hyperparameter_search(backend=HPSearchBackend.RAY)
    with pytest.raises(UnsupportedError, match="n_jobs=2"):
        trainer.hyperparameter_search(n_jobs=2)
    with pytest.warns(GptrioWarning, match=r"chooses 'learning_rat', .* did you mean 'learning_rate'"):
        trainer.hyperparameter_search(lambda trial: {"learning_rat": trial.suggest_float("x", 0, 1)}, n_trials=1)
    model = gptrio.GPT2LMHeadModel.from_pretrained(first_model)
    with pytest.raises(InputError, match="pass model_init"):
        gptrio.Trainer(model, gptrio.TrainingArguments(str(tmp_path), report_to="none")).hyperparameter_search()


def test_a_folder_may_be_named_by_what_the_model_chose(tmp_path: Path, first_model: Path) -> None:
    trainer = new_trainer(gptrio, tmp_path, first_model, load_best_model_at_end=True, save_steps=1)
    chosen = []

    def model_init(trial: Any) -> Any:
        chosen.append(None if trial is None else trial.suggest_int("width", 1, 9))
        return gptrio.GPT2LMHeadModel.from_pretrained(first_model)

    trainer.model_init = model_init
    trainer.hyperparameter_search(
        lambda trial: {}, n_trials=1, direction="minimize", hp_name=lambda trial: f"width-{trial.params.get('width')}"
    )
    assert [path.name for path in tmp_path.iterdir()] == [f"width-{chosen[-1]}"]
    assert Path(trainer.state.best_model_checkpoint).parent.name == f"width-{chosen[-1]}"
