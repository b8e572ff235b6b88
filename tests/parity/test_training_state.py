"""`TrainerState`, `TrainerControl`, the flow of a run and early stopping, beside the reference's."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import transformers
from transformers.trainer_callback import CallbackHandler as ReferenceHandler
from transformers.trainer_callback import ExportableState as ReferenceExportable

import gptrio
from gptrio import (
    CheckpointFormatError,
    DefaultFlowCallback,
    EarlyStoppingCallback,
    GptrioWarning,
    InputError,
    OptionError,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from gptrio.training.callback_handler import CallbackHandler
from gptrio.training.state import ExportableState

LIBRARIES = (gptrio, transformers)
VALUES = {
    "epoch": 1.25,
    "global_step": 7,
    "max_steps": 30,
    "train_batch_size": 4,
    "num_train_epochs": 3,
    "total_flos": 1.5e12,
    "log_history": [{"loss": 2.5, "epoch": 1.0, "step": 6}, {"eval_loss": float("nan"), "epoch": 1.0, "step": 6}],
    "best_metric": 0.5,
    "best_global_step": 6,
    "best_model_checkpoint": "out/checkpoint-6",
    "trial_params": {"seed": 3},
}


def state_of(library, **values):
    stopping = library.EarlyStoppingCallback(2, 0.1)
    stopping.early_stopping_patience_counter = 1
    callbacks = [library.TrainerControl(should_save=True), stopping, library.EarlyStoppingCallback(9)]
    return library.TrainerState(**values, stateful_callbacks=callbacks)


def test_fields_are_the_references():
    for name in ("TrainerState", "TrainerControl"):
        ours, expected = (dataclasses.fields(getattr(library, name)) for library in LIBRARIES)
        assert [field.name for field in ours] == [field.name for field in expected]
    assert dataclasses.asdict(TrainerState()) == dataclasses.asdict(transformers.TrainerState())
    assert dataclasses.asdict(TrainerControl()) == dataclasses.asdict(transformers.TrainerControl())


@pytest.mark.parametrize("values", [{}, VALUES])
def test_files_are_the_references_byte_for_byte_and_read_both_ways(values, tmp_path):
    paths = [tmp_path / library.__name__ for library in LIBRARIES]
    for library, path in zip(LIBRARIES, paths, strict=True):
        state_of(library, **values).save_to_json(str(path))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    read = [library.TrainerState.load_from_json(str(paths[1 - i])) for i, library in enumerate(LIBRARIES)]
    assert json.dumps(dataclasses.asdict(read[0])) == json.dumps(dataclasses.asdict(read[1]))
    again = EarlyStoppingCallback.from_state(read[0].stateful_callbacks["EarlyStoppingCallback"][0])
    assert vars(again) == {
        "early_stopping_patience": 2,
        "early_stopping_threshold": 0.1,
        "early_stopping_patience_counter": 1,
    }
    assert TrainerControl.from_state(read[0].stateful_callbacks["TrainerControl"]) == TrainerControl(should_save=True)


def test_a_broken_file_is_an_error_and_keys_of_other_versions_are_said(tmp_path):
    path = tmp_path / "trainer_state.json"
    path.write_text('{"global_step": 3')
    with pytest.raises(CheckpointFormatError, match="not valid JSON"):
        TrainerState.load_from_json(path)
    path.write_text('{"global_step": 3, "newest": 1}')
    with pytest.warns(GptrioWarning, match="keys of another version, which are ignored: newest"):
        assert TrainerState.load_from_json(path).global_step == 3


def test_callbacks_without_a_state_cannot_be_saved():
    with pytest.raises(InputError, match="callback DefaultFlowCallback cannot be saved"):
        TrainerState(stateful_callbacks=[DefaultFlowCallback()])
    with pytest.raises(NotImplementedError, match=r"ExportableState\.state\(\) is missing"):
        ExportableState().state()
    assert hasattr(ReferenceExportable, "from_state")


@pytest.mark.parametrize("max_steps", [1, 7, 100, 1001])
def test_shares_of_a_run_become_numbers_of_updates(max_steps):
    for given in ((500, None, 500), (0.1, 0.25, 0.5), (1, 0.001, 3), (0.999, 2, 0.3)):
        steps = dict(zip(("logging_steps", "eval_steps", "save_steps"), given, strict=True))
        ours, expected = (library.TrainerState() for library in LIBRARIES)
        ours.compute_steps(TrainingArguments("out", **steps), max_steps)
        expected.compute_steps(transformers.TrainingArguments("out", use_cpu=True, **steps), max_steps)
        assert dataclasses.asdict(ours) == dataclasses.asdict(expected)


def decisions(library, arguments, numbers):
    """What the flow callback decides at each number of updates, and at the ends of epochs."""
    args = library.TrainingArguments("out", use_cpu=True, **arguments)
    flow, state = library.DefaultFlowCallback(), library.TrainerState(max_steps=12)
    state.compute_steps(args, 12)
    rows = []
    for step in numbers:
        state.global_step, state.epoch = step, step / 4
        for event in (flow.on_step_end, flow.on_epoch_end):
            rows.append(dataclasses.astuple(event(args, state, library.TrainerControl())))
    return rows


@pytest.mark.parametrize("strategies", list(itertools.product(("no", "steps", "epoch"), repeat=2)))
def test_flow_of_a_run_is_the_references(strategies):
    evaluating, saving = strategies
    seen = set()
    for logging, first, delay in itertools.product(("no", "steps", "epoch"), (False, True), (0, 2, 6.5)):
        arguments = {
            "eval_strategy": evaluating,
            "save_strategy": "best" if saving == "no" and first else saving,
            "logging_strategy": logging,
            "logging_first_step": first,
            "eval_delay": delay,
            "logging_steps": 3,
            "eval_steps": 2,
            "save_steps": 0.5,
        }
        ours = decisions(gptrio, arguments, range(1, 14))
        assert ours == decisions(transformers, arguments, range(1, 14)), arguments
        seen.update(ours)
    assert len(seen) > 3


METRICS = [0.5, 0.6, 0.55, 0.65, 0.64, 0.63, float("nan"), 0.9, 0.9]


@pytest.mark.parametrize("greater", [True, False])
@pytest.mark.parametrize(("patience", "threshold"), [(1, 0.0), (2, 0.0), (2, 0.08), (3, 0.2)])
def test_early_stopping_counts_as_the_reference(greater, patience, threshold):
    def counts(library):
        args = library.TrainingArguments(
            "out",
            use_cpu=True,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="score",
            greater_is_better=greater,
        )
        state, control = library.TrainerState(), library.TrainerControl()
        callback = library.EarlyStoppingCallback(patience, threshold)
        callback.on_train_begin(args, state, control)
        rows = []
        for value in METRICS:
            callback.on_evaluate(args, state, control, metrics={"eval_score": value})
            rows.append((callback.early_stopping_patience_counter, control.should_training_stop))
            if state.best_metric is None or (value > state.best_metric if greater else value < state.best_metric):
                state.best_metric = value
        return rows

    assert counts(gptrio) == counts(transformers)
    assert counts(gptrio)[-1][1]


def test_early_stopping_asks_for_what_it_needs():
    state, control = TrainerState(), TrainerControl()
    args = TrainingArguments("out", eval_strategy="epoch")
    with (
        pytest.warns(GptrioWarning, match="ends with the last model"),
        pytest.raises(OptionError, match="needs metric_for_best_model"),
    ):
        EarlyStoppingCallback().on_train_begin(args, state, control)
    args = TrainingArguments("out", metric_for_best_model="loss")
    with (
        pytest.warns(GptrioWarning, match="ends with the last model"),
        pytest.raises(OptionError, match="needs eval_strategy"),
    ):
        EarlyStoppingCallback().on_train_begin(args, state, control)
    with pytest.warns(GptrioWarning, match="has no eval_loss, but eval_accuracy"):
        EarlyStoppingCallback().on_evaluate(args, state, control, metrics={"eval_accuracy": 1.0})


EVENTS = [name for name in dir(transformers.TrainerCallback) if name.startswith("on_")]


def recorder(library, calls):
    """A callback of a library that writes down what its events are called with."""

    class Recorder(library.TrainerCallback):
        pass

    for event in EVENTS:

        def method(self, args, state, control, event=event, **kwargs):
            calls.append(
                (event, dataclasses.astuple(control), sorted(kwargs), kwargs.get("metrics"), kwargs.get("logs"))
            )

        setattr(Recorder, event, method)
    return Recorder()


def test_all_fifteen_events_reach_callbacks_as_in_the_reference():
    assert len(EVENTS) == 15

    def calls_of(library, handler_class):
        calls = []
        callbacks = [library.DefaultFlowCallback, recorder(library, calls)]
        handler = handler_class(callbacks, "model", "tokenizer", "optimizer", "schedule")
        args, state = library.TrainingArguments("out", use_cpu=True), library.TrainerState(max_steps=9, global_step=9)
        for event in EVENTS:
            more = {"on_evaluate": ({"eval_loss": 1},), "on_predict": ({"test_loss": 2},), "on_log": ({"loss": 3},)}
            control = library.TrainerControl(True, True, True, True, True)
            returned = getattr(handler, event)(args, state, control, *more.get(event, ()))
            calls.append(dataclasses.astuple(returned))
        return calls

    assert calls_of(gptrio, CallbackHandler) == calls_of(transformers, ReferenceHandler)


def test_a_control_that_a_callback_returns_goes_on_to_the_next():
    class First(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            return TrainerControl(should_log=True)

    calls = []
    handler = CallbackHandler([DefaultFlowCallback, First, recorder(gptrio, calls)], None, None, None, None)
    returned = handler.call_event("on_step_end", TrainingArguments("out"), TrainerState(), TrainerControl())
    assert returned == TrainerControl(should_log=True)
    assert calls[0][1] == (False, False, False, False, True)


def test_callbacks_are_added_and_taken_away_as_in_the_reference():
    def names(library, handler_class):
        handler = handler_class([library.DefaultFlowCallback], None, None, None, None)
        stopping = library.EarlyStoppingCallback()
        handler.add_callback(library.PrinterCallback)
        handler.add_callback(stopping)
        rows = [handler.callback_list]
        popped = [handler.pop_callback(library.PrinterCallback), handler.pop_callback(stopping)]
        rows += [type(callback).__name__ for callback in popped]
        rows += [handler.pop_callback(stopping), handler.remove_callback(library.ProgressCallback)]
        handler.remove_callback(library.DefaultFlowCallback)
        return [*rows, handler.callback_list]

    assert names(gptrio, CallbackHandler) == names(transformers, ReferenceHandler)


def test_callbacks_that_cannot_work_are_said():
    with pytest.warns(GptrioWarning, match=r"without a DefaultFlowCallback nothing .*, which are none"):
        handler = CallbackHandler([], None, None, None, None)
    handler.add_callback(DefaultFlowCallback)
    with pytest.warns(GptrioWarning, match="there is a DefaultFlowCallback already"):
        handler.add_callback(DefaultFlowCallback())
    with pytest.raises(ValueError, match="EarlyStoppingCallback is not among the callbacks"):
        handler.remove_callback(EarlyStoppingCallback())
