"""What runs show and report beside the reference's: progress, printed logs, TensorBoard, trackio, wandb, CSV files."""

from __future__ import annotations

import csv
import importlib.machinery
import io
import re
import sys
import types

import pytest
import transformers
from rich.console import Console
from transformers.integrations import integration_utils as reference

import gptrio
from gptrio import GptrioWarning, MissingDependencyError, TrainerControl, TrainerState, TrainingArguments
from gptrio.training import reporting
from gptrio.training.progress import PrinterCallback, ProgressCallback
from gptrio.training.reporting import (
    CSVCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
    rewrite_logs,
)

LOGS = [
    {"loss": 2.5, "grad_norm": 1.25, "learning_rate": 5e-5, "epoch": 0.3333333333333333},
    {"eval_loss": 2.25, "eval_runtime": 0.5, "test_figure": 1, "epoch": 1.0},
    {
        "train_runtime": 3.5,
        "train_samples_per_second": 7.0,
        "train_loss": 2.4,
        "total_flos": 1e9,
        "epoch": 1.0,
        "note": "n" * 120,
    },
]


class Model:
    """Something with a configuration and a number of parameters."""

    config = gptrio.GPT2Config(n_layer=1)

    def num_parameters(self):
        return 12


MODEL = Model()


class Calls:
    """Writes down every call of its attributes, and of theirs."""

    def __init__(self, rows, name):
        self._rows, self._name = rows, name

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Calls(self._rows, f"{self._name}.{name}")

    def __call__(self, *args, **kwargs):
        self._rows.append((self._name, args, kwargs))

    def __setitem__(self, key, value):
        self._rows.append((f"{self._name}[{key!r}]", (value,), {}))


def package(name, rows, **attributes):
    """A module that writes down what is called, in the place of one that is not installed."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__version__ = "1.0"
    calls = Calls(rows, name)
    module.__getattr__ = lambda attribute: getattr(calls, attribute)
    vars(module).update(attributes)
    return module


def run_of(callback, library, **state):
    """Lead a callback through a run of a library."""
    args = library.TrainingArguments("out", logging_dir="logs", use_cpu=True, run_name="a run", report_to=[])
    state = library.TrainerState(max_steps=9, global_step=3, **state)
    control = library.TrainerControl()
    callback.on_train_begin(args, state, control, model=MODEL)
    for logs in LOGS:
        callback.on_log(args, state, control, model=MODEL, logs=dict(logs))
        state.global_step += 3
    callback.on_evaluate(args, state, control, metrics={"eval_loss": 1.0})
    callback.on_save(args, state, control)
    callback.on_predict(args, state, control, metrics={"test_loss": 1.5})
    callback.on_train_end(args, state, control, model=MODEL)


@pytest.mark.parametrize(("name", "ours"), [("wandb", WandbCallback), ("trackio", TrackioCallback)])
@pytest.mark.parametrize("is_first", [True, False])
def test_runs_are_reported_as_by_the_reference(name, ours, is_first, monkeypatch):
    monkeypatch.setenv("WANDB_WATCH", "gradients")
    monkeypatch.setenv("TRACKIO_PROJECT", "project")
    theirs = {"wandb": reference.WandbCallback, "trackio": reference.TrackioCallback}[name]
    monkeypatch.setattr(reference, f"is_{name}_available", lambda: True)
    errors = types.ModuleType("wandb.sdk.lib.config_util")
    errors.ConfigError = KeyError
    monkeypatch.setitem(sys.modules, "wandb.sdk.lib.config_util", errors)
    seen = []

    def opened(**kwargs):
        rows.append(("init", (), kwargs))
        module.run = Calls(rows, "run")

    for callback_class, library in ((ours, gptrio), (theirs, transformers)):
        rows = []
        module = package(name, rows, **({"run": None, "init": opened} if name == "wandb" else {}))
        monkeypatch.setitem(sys.modules, name, module)
        run_of(callback_class(), library, is_world_process_zero=is_first)
        seen.append([row for row in rows if "_label" not in row[0]])
    assert seen[0] == seen[1]
    assert bool(seen[0]) == is_first


def test_tensorboard_gets_what_the_reference_writes(monkeypatch):
    monkeypatch.setattr(reference, "is_tensorboard_available", lambda: True)
    seen = []
    for callback_class, library in ((TensorBoardCallback, gptrio), (reference.TensorBoardCallback, transformers)):
        rows = []
        run_of(callback_class(Calls(rows, "writer")), library)
        seen.append(rows)
    assert seen[0] == seen[1]
    assert ("writer.add_scalar", ("train/loss", 2.5, 3), {}) in seen[0]
    assert seen[0][-1][0] == "writer.close"


def test_tensorboard_says_what_it_cannot_show():
    rows = []
    callback = TensorBoardCallback(Calls(rows, "writer"))
    with pytest.warns(GptrioWarning, match="TensorBoard gets no train/rows: it is a list"):
        callback.on_log(TrainingArguments("out"), TrainerState(), TrainerControl(), logs={"rows": [1]})


def test_a_writer_is_made_in_the_folder_of_logs(monkeypatch):
    rows = []
    monkeypatch.setattr(reporting, "is_installed", lambda name: name == "tensorboard")
    module = package("torch.utils.tensorboard", rows, SummaryWriter=lambda log_dir: Calls(rows, log_dir))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run_of(TensorBoardCallback(), gptrio)
    assert rows[0][0] == "logs.add_text"
    assert rows[-1][0] == "logs.close"


def test_missing_packages_are_named(monkeypatch):
    for module in ("wandb", "trackio", "tensorboardX", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    for callback, message in (
        (WandbCallback, "report_to='wandb' needs wandb: pip install wandb"),
        (TrackioCallback, "report_to='trackio' needs trackio"),
        (TensorBoardCallback, "report_to='tensorboard' needs tensorboard"),
    ):
        with pytest.raises(MissingDependencyError, match=message):
            callback()


def test_all_means_what_is_installed(monkeypatch):
    for installed, expected in (
        ((), []),
        (("tensorboardX",), ["tensorboard"]),
        (("wandb", "trackio", "mlflow"), ["trackio", "wandb"]),
    ):
        monkeypatch.setattr(reporting, "is_installed", installed.__contains__)
        monkeypatch.delenv("WANDB_DISABLED", raising=False)
        assert get_available_reporting_integrations() == expected
        for given in (None, "all", ["all"]):
            assert TrainingArguments("out", report_to=given).report_to == expected
        for given in ("none", ["none"], []):
            assert TrainingArguments("out", report_to=given).report_to == []
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert get_available_reporting_integrations() == ["trackio"]


def test_names_are_callbacks():
    assert get_reporting_integration_callbacks(None) == []
    assert get_reporting_integration_callbacks("none") == []
    assert get_reporting_integration_callbacks(["csv", "wandb"]) == [CSVCallback, WandbCallback]
    args = TrainingArguments("out").set_logging(report_to="csv")
    assert get_reporting_integration_callbacks(args.report_to) == [CSVCallback]


def test_logs_are_grouped_as_by_the_reference():
    for logs in (*LOGS, {"evaluation": 1, "eval_": 2, "test_eval_loss": 3, "eval_test_loss": 4}):
        assert rewrite_logs(logs) == reference.rewrite_logs(logs)


def test_csv_files_hold_every_number(tmp_path):
    args = TrainingArguments("out", logging_dir=str(tmp_path / "logs"))
    state = TrainerState(global_step=3, epoch=0.5)
    CSVCallback().on_log(args, state, TrainerControl(), logs=LOGS[0])
    state.global_step = 6
    CSVCallback().on_log(args, state, TrainerControl(), logs={"eval_loss": 2.0})
    state.is_world_process_zero = False
    CSVCallback().on_log(args, state, TrainerControl(), logs={"eval_loss": 3.0})
    with open(tmp_path / "logs" / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["name"], float(row["value"])) for row in rows] == [
        ("3", "loss", 2.5),
        ("3", "grad_norm", 1.25),
        ("3", "learning_rate", 5e-5),
        ("6", "eval_loss", 2.0),
    ]


@pytest.mark.parametrize("is_first", [True, False])
def test_printed_logs_are_the_references(is_first, capsys):
    def printed(callback, library):
        run_of(callback, library, is_world_process_zero=is_first, is_local_process_zero=is_first)
        return capsys.readouterr().out.replace("\r", "").strip()

    ours = printed(ProgressCallback(), gptrio)
    assert ours == printed(transformers.ProgressCallback(), transformers)
    assert ("'epoch': 0.33" in ours) == is_first
    assert printed(PrinterCallback(), gptrio) == printed(transformers.PrinterCallback(), transformers)


@pytest.fixture
def terminal(monkeypatch):
    """What standard error shows, as if it were a terminal of 100 columns."""
    shown = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=shown, force_terminal=True, width=100))
    return lambda: re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue())


class Sized:
    """A loader of so many batches."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length


def test_a_bar_shows_how_far_training_and_evaluation_are(terminal):
    args, state, control = TrainingArguments("out"), TrainerState(max_steps=20), TrainerControl()
    callback = ProgressCallback()
    callback.on_train_begin(args, state, control)
    state.global_step = 15
    callback.on_step_end(args, state, control)
    assert callback.bars.tasks[0].completed == 15
    for _ in range(3):
        callback.on_prediction_step(args, state, control, eval_dataloader=Sized(5))
    assert [(task.description, task.completed, task.total) for task in callback.bars.tasks] == [
        ("Training", 15, 20),
        ("Evaluation", 3, 5),
    ]
    callback.on_evaluate(args, state, control)
    assert len(callback.bars.tasks) == 1
    state.global_step = 20
    callback.on_step_end(args, state, control)
    callback.on_train_end(args, state, control)
    assert callback.bars is None
    assert "20/20" in terminal()


def test_an_evaluation_alone_has_a_bar_which_goes_away(terminal):
    args, state, control = TrainingArguments("out"), TrainerState(), TrainerControl()
    callback = ProgressCallback()
    callback.on_prediction_step(args, state, control, eval_dataloader=iter(()))  # has no length
    assert callback.bars is None
    callback.on_prediction_step(args, state, control, eval_dataloader=Sized(2))
    callback.on_prediction_step(args, state, control, eval_dataloader=Sized(2))
    assert callback.bars.tasks[0].completed == 2
    callback.on_predict(args, state, control, metrics={})
    assert callback.bars is None
    assert "Evaluation" in terminal()


def test_a_run_after_an_interrupted_one_begins_a_new_bar(terminal):
    args, state, control = TrainingArguments("out"), TrainerState(max_steps=4), TrainerControl()
    callback = ProgressCallback()
    callback.on_train_begin(args, state, control)
    first = callback.bars
    callback.on_train_begin(args, state, control)
    assert first.finished is False
    assert not first.live.is_started
    callback.on_train_end(args, state, control)
