"""What is overridden is called as in the reference: callbacks, methods, functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import gptrio
from tests.training_pair import (
    arguments,
    assert_same_history,
    assert_same_weights,
    collate,
    pair_of,
    rows_for,
    trainers,
)

EVENTS = [name for name in dir(transformers.TrainerCallback) if name.startswith("on_")]


def recorder(library: Any) -> Any:
    """A callback that notes each event with the state and what it is given."""

    class Recorder(library.TrainerCallback):
        def __init__(self):
            self.events = []

    def note(name: str) -> Any:
        def method(self, args, state, control, **kwargs):
            given = sorted(key for key, value in kwargs.items() if value is not None)
            switches = [control.should_log, control.should_evaluate, control.should_save, control.should_training_stop]
            self.events.append((name, state.global_step, round(state.epoch or 0, 6), given, switches))

        return method

    for event in EVENTS:
        setattr(Recorder, event, note(event))
    return Recorder()


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_events_come_in_the_reference_s_order_with_the_same_arguments(strategy):
    oracle, model = pair_of("GPT2LMHeadModel")
    data = rows_for("GPT2LMHeadModel", 11)
    changes = {
        "num_train_epochs": 2,
        "gradient_accumulation_steps": 2,
        "eval_strategy": strategy,
        "save_strategy": strategy,
        "logging_strategy": strategy,
        "eval_steps": 2,
        "save_steps": 3,
        "logging_steps": 2,
        "eval_on_start": True,
    }
    recorded = []
    for library, each in ((transformers, oracle), (gptrio, model)):
        callback = recorder(library)
        options = {"train_dataset": data, "eval_dataset": data[:4], "data_collator": collate, "callbacks": [callback]}
        library.Trainer(each, arguments(library, **changes), **options).train()
        recorded.append(callback.events)
    assert recorded[1] == recorded[0]


def test_a_callback_that_stops_an_epoch_or_the_run_does_so():
    oracle, model = pair_of("GPT2LMHeadModel")
    data, seen = rows_for("GPT2LMHeadModel", 12), []
    for library, each in ((transformers, oracle), (gptrio, model)):

        class Stop(library.TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_epoch_stop = state.global_step == 2
                control.should_training_stop = state.global_step == 5

        changes = {"gradient_accumulation_steps": 2, "num_train_epochs": 4}
        options = {"train_dataset": data, "data_collator": collate, "callbacks": [Stop]}
        trainer = library.Trainer(each, arguments(library, **changes), **options)
        trainer.train()
        seen.append(trainer)
    assert_same_history(seen[1].state.log_history, seen[0].state.log_history)
    assert seen[1].state.global_step == 5
    assert_same_weights(model, oracle)


class Overridden:
    """A mixin that overrides what users override, and notes the calls."""

    def note(self, *what: Any) -> None:
        self.__dict__.setdefault("calls", []).append(what)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.note("compute_loss", sorted(inputs), return_outputs, num_items_in_batch is None)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = torch.nn.functional.cross_entropy(outputs.logits, labels) * 2
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.note("training_step", self.current_gradient_accumulation_steps)
        return super().training_step(model, inputs, num_items_in_batch)

    def get_train_dataloader(self):
        self.note("get_train_dataloader")
        return torch.utils.data.DataLoader(self.train_dataset, batch_size=2, collate_fn=self.data_collator)

    def create_optimizer(self):
        self.note("create_optimizer", self.optimizer is None)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.note("create_scheduler", num_training_steps, optimizer is self.optimizer)
        return super().create_scheduler(num_training_steps, optimizer)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        self.note("prediction_step", prediction_loss_only, ignore_keys)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def log(self, logs, start_time=None):
        self.note("log", sorted(logs), start_time is None)
        super().log({**logs, "more": 1}, start_time)

    def evaluate(self, *args, **kwargs):
        self.note("evaluate", args, sorted(kwargs))
        return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        self.note("evaluation_loop", len(args), sorted(kwargs))
        return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir=None, _internal_call=False):
        self.note("save_model", _internal_call)
        super().save_model(output_dir, _internal_call)

    def get_decay_parameter_names(self, model):
        raise AssertionError("create_optimizer is overridden")


def test_overridden_methods_are_called_as_in_the_reference():
    name = "GPTNeoXForSequenceClassification"
    oracle, model = pair_of(name)
    data = rows_for(name, 10)
    changes = {"num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "epoch"}
    pair = []
    for library, each in ((transformers, oracle), (gptrio, model)):
        cls = type("Own", (Overridden, library.Trainer), {})
        options = {"train_dataset": data, "eval_dataset": data[:4], "data_collator": collate}
        trainer = cls(each, arguments(library, **changes), **options)
        trainer.train()
        trainer.predict(data[:4])
        pair.append(trainer)
    assert pair[1].calls == pair[0].calls
    assert_same_weights(model, oracle)
    assert_same_history(pair[1].state.log_history, pair[0].state.log_history)


def test_functions_that_are_passed_are_called_as_in_the_reference():
    calls: list[Any] = []

    def compute_loss_func(outputs, labels, num_items_in_batch=None):
        calls.append((tuple(outputs.logits.shape), tuple(labels.shape), int(num_items_in_batch)))
        flat = outputs.logits[:, :-1].reshape(-1, outputs.logits.shape[-1])
        loss = torch.nn.functional.cross_entropy(flat, labels[:, 1:].reshape(-1), reduction="sum")
        return loss / num_items_in_batch

    theirs, ours = trainers("GPTNeoForCausalLM", {"max_steps": 4}, compute_loss_func=compute_loss_func)
    for trainer in (theirs, ours):
        trainer.train()
    assert calls[:12] == calls[12:]
    assert_same_weights(ours.model, theirs.model)
    assert_same_history(ours.state.log_history, theirs.state.log_history)


def test_an_optimizer_and_a_schedule_of_one_s_own_are_used():
    oracle, model = pair_of("GPT2LMHeadModel")
    data, trainers_ = rows_for("GPT2LMHeadModel", 8), []
    for library, each in ((transformers, oracle), (gptrio, model)):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.3, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        options = {"train_dataset": data, "data_collator": collate, "optimizers": (optimizer, schedule)}
        trainer = library.Trainer(each, arguments(library, max_steps=5), **options)
        trainer.train()
        trainers_.append(trainer)
    assert_same_weights(model, oracle)
    assert_same_history(trainers_[1].state.log_history, trainers_[0].state.log_history)


def test_a_model_is_made_anew_for_every_run():
    histories = []
    data = rows_for("GPT2LMHeadModel", 8)
    for library in (transformers, gptrio):

        def model_init(library=library):
            torch.manual_seed(3)
            pair = pair_of("GPT2LMHeadModel")
            return pair[0] if library is transformers else pair[1]

        options = {"train_dataset": data, "data_collator": collate, "model_init": model_init}
        trainer = library.Trainer(args=arguments(library, max_steps=3), **options)
        for _ in range(2):
            trainer.train()
            histories.append(trainer.state.log_history)
    assert_same_history(histories[1], histories[0])
    assert_same_history(histories[2], histories[0])
    assert_same_history(histories[3], histories[2])


def test_a_metric_steers_the_rate_of_a_plateau_schedule():
    data = rows_for("GPT2LMHeadModel", 8)
    changes = {
        "max_steps": 6,
        "learning_rate": 0.1,
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5},
        "metric_for_best_model": "loss",
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    theirs, ours = trainers("GPT2LMHeadModel", changes, train_dataset=data, eval_dataset=data)
    for trainer in (theirs, ours):
        trainer.train()
    assert_same_history(ours.state.log_history, theirs.state.log_history, 1e-4)
    assert ours.optimizer.param_groups[0]["lr"] < 0.1
