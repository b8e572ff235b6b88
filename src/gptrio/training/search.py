"""The part of `Trainer` that searches hyperparameters: runs with other arguments, chosen by Optuna."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from gptrio.errors import InputError, UnsupportedError, import_optional, nearest, warn
from gptrio.training.enums import HPSearchBackend
from gptrio.training.evaluation import EvaluationMixin
from gptrio.training.run_folder import RunFolder
from gptrio.training.saving import SavingMixin

_log = logging.getLogger(__name__)
_NO_METRIC = ("_runtime", "_per_second", "_compilation_time")


class BestRun(NamedTuple):
    """The best run of a search.

    Attributes:
        run_id: number of the trial; its checkpoints are in `output_dir/run-{run_id}`.
        objective: what it reached; a list if there are several directions.
        hyperparameters: values by name.
        run_summary: None.
    """

    run_id: str
    objective: float | list[float]
    hyperparameters: dict[str, Any]
    run_summary: Any = None


def default_compute_objective(metrics: dict[str, float]) -> float:
    """The sum of an evaluation's metrics; the loss if there are none besides figures of speed."""
    own = {
        name: v for name, v in metrics.items() if name not in ("eval_loss", "epoch") and not name.endswith(_NO_METRIC)
    }
    return sum(own.values()) if own else metrics["eval_loss"]


def default_hp_space_optuna(trial: Any) -> dict[str, float]:
    """Learning rate, epochs, seed and rows of a batch, as an Optuna trial suggests them."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-4, log=True),
        "num_train_epochs": trial.suggest_int("num_train_epochs", 1, 5),
        "seed": trial.suggest_int("seed", 1, 40),
        "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [4, 8, 16, 32, 64]),
    }


class SearchMixin(EvaluationMixin, SavingMixin):
    """`hyperparameter_search`, and what `train` does for one of its trials.

    Attributes:
        hp_space, compute_objective, hp_name: arguments of the search.
        hp_search_backend: None outside of a search.
        objective: of the last evaluation of a trial.
    """

    hp_space: Callable[[Any], dict[str, Any]] = staticmethod(default_hp_space_optuna)
    compute_objective: Callable[[dict[str, float]], Any] = staticmethod(default_compute_objective)
    hp_name: Callable[[Any], str] | None = None
    hp_search_backend: HPSearchBackend | None = None
    objective: Any = None
    model_init: Callable[..., Any] | None

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], Any] | None = None,
        n_trials: int = 20,
        direction: str | list[str] = "minimize",
        backend: str | HPSearchBackend | None = None,
        hp_name: Callable[[Any], str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """Train again and again with other arguments, and return the best run.

        Each trial begins with a model of `model_init` and sets the arguments that `hp_space` chooses; a trial that the
        study prunes ends after an evaluation. Afterwards `args` are those of the last trial.

        Args:
            hp_space: arguments of training by name, of an Optuna trial; by default `default_hp_space_optuna`.
            compute_objective: of the metrics of an evaluation; by default `default_compute_objective`.
            n_trials: number of trials.
            direction: "minimize" or "maximize"; several for several objectives.
            backend: "optuna".
            hp_name: name of a trial's run and folder, "run-NUMBER" by default.
            **kwargs: of `optuna.create_study`, and `timeout` in seconds and `gc_after_trial` of `Study.optimize`.

        Returns:
            The best run; with several objectives, all runs that no other one beats.

        Raises:
            InputError: there is no `model_init`.
            UnsupportedError: another backend, several processes, or trials side by side.
            MissingDependencyError: Optuna is not installed.
        """
        self._check_search(HPSearchBackend(backend or "optuna"), kwargs.pop("n_jobs", 1))
        optuna = import_optional("optuna", "hyperparameter_search needs Optuna: pip install optuna")
        self.hp_space = default_hp_space_optuna if hp_space is None else hp_space
        self.compute_objective = default_compute_objective if compute_objective is None else compute_objective
        self.hp_name, self.hp_search_backend = hp_name, HPSearchBackend.OPTUNA
        options = {name: kwargs.pop(name) for name in ("timeout", "gc_after_trial") if name in kwargs}
        directions = {"directions": direction} if isinstance(direction, list) else {"direction": direction}
        study = optuna.create_study(**directions, **kwargs)
        folder = self._run_folder
        try:
            study.optimize(self._objective_of, n_trials=n_trials, **options)
        finally:
            self.hp_search_backend, self._run_folder = None, folder  # of a run after the search
        if isinstance(direction, list):
            return [BestRun(str(best.number), best.values, best.params) for best in study.best_trials]
        return BestRun(str(study.best_trial.number), study.best_trial.value, study.best_trial.params)

    def _check_search(self, backend: HPSearchBackend, jobs: int) -> None:
        if backend != HPSearchBackend.OPTUNA:
            raise UnsupportedError(
                f"backend={backend.value!r}: searches are done by Optuna alone; pass backend='optuna'"
            )
        if jobs != 1:
            raise UnsupportedError(f"n_jobs={jobs}: a trainer has one model, so that trials run one after another")
        if self.args.world_size > 1:
            raise UnsupportedError("hyperparameter_search runs in one process; start it without torchrun")
        if self.model_init is None:
            raise InputError("hyperparameter_search makes a new model for each trial; pass model_init to the Trainer")

    def _objective_of(self, trial: Any) -> Any:
        """Train once; the objective of the last evaluation."""
        self.objective = None
        self.train(trial=trial)
        if self.objective is None:
            self.objective = self.compute_objective(self.evaluate())
        return self.objective

    def _hp_search_setup(self, trial: Any) -> None:
        """Set the arguments of a trial, and the folder of its checkpoints."""
        self._trial = trial
        if self.hp_search_backend is None or trial is None:
            return
        for name, value in self.hp_space(trial).items():
            if not hasattr(self.args, name):
                hint = nearest(name, vars(self.args), before="; ")
                warn(f"the search chooses {name!r}, which is no argument of training{hint}")
                continue
            before = getattr(self.args, name)
            setattr(self.args, name, value if before is None else type(before)(value))
        _log.info(f"trial {trial.number}: {trial.params}")
        self.create_accelerator_and_postprocess()

    def _enter_trial_folder(self, trial: Any) -> None:
        """Set the folder of a trial's checkpoints, whose name may depend on all that was chosen for it."""
        if self.hp_search_backend is not None and trial is not None:
            self._run_folder = RunFolder(self._get_output_dir(trial), self.args.should_save)

    def _report_to_hp_search(self, trial: Any, step: int, metrics: dict[str, float]) -> None:
        """Tell the study what an evaluation has found; it may end the trial."""
        if self.hp_search_backend is None or trial is None:
            return
        self.objective = self.compute_objective(dict(metrics))
        if len(trial.study.directions) > 1:
            return
        trial.report(self.objective, step)
        if trial.should_prune():
            self.callback_handler.on_train_end(self.args, self.state, self.control)
            raise import_optional("optuna", "Optuna is gone").TrialPruned
