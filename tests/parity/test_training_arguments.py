"""`TrainingArguments` beside the reference's: fields, defaults, what construction makes of them, dictionaries."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle
import re
from datetime import timedelta
from typing import get_type_hints

import pytest
import transformers

from gptrio import TrainingArguments

Reference = transformers.TrainingArguments


def fields(kind):
    return {field.name: field for field in dataclasses.fields(kind)}


def dictionaries(**given):
    """What both libraries make of some arguments."""
    ours = TrainingArguments("out", use_cpu=True, **given).to_dict()
    expected = Reference("out", use_cpu=True, **given).to_dict()
    for values in (ours, expected):
        values["logging_dir"] = re.sub(r"runs/\w{3}\d\d_\d\d-\d\d-\d\d_", "runs/TIME_", values["logging_dir"])
    return ours, expected


def test_fields_have_the_references_names_order_and_defaults():
    ours, expected = fields(TrainingArguments), fields(Reference)
    assert len(expected) == 132
    assert list(ours) == list(expected)
    for name, field in expected.items():
        assert (ours[name].default, ours[name].default_factory) == (field.default, field.default_factory), name
        assert ours[name].init == field.init
        assert list(ours[name].metadata.get("choices", ())) == list(field.metadata.get("choices", ())), name


def test_types_of_fields_are_the_references():
    def written(hint):
        text = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
        parts = re.sub(r"typing\.|transformers\.\w+\.|gptrio\.training\.enums\.|<class '|'>", "", text)
        parts = re.sub(r"Optional\[(.*)\]$", r"\1 | None", parts)
        parts = re.sub(r"Union\[(.*)\]$", lambda found: found[1].replace(", ", " | "), parts)
        return set(re.split(r" \| ", parts.replace("NoneType", "None").replace("dict[str | Any]", "dict[str, Any]")))

    ours, expected = get_type_hints(TrainingArguments), get_type_hints(Reference)
    loose = {"parallelism_config", "accelerator_config", "deepspeed"}  # accelerate's class; dict without types
    for name in fields(Reference).keys() - loose:
        assert written(ours[name]) == written(expected[name]), name


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"eval_strategy": "steps"},
        {"eval_strategy": "steps", "logging_steps": 10.0, "save_steps": 20.0},
        {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True},
        {"eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.3, "load_best_model_at_end": True},
        {"save_strategy": "best", "load_best_model_at_end": True, "metric_for_best_model": "accuracy"},
        {"eval_strategy": "epoch", "lr_scheduler_type": "reduce_lr_on_plateau"},
        {"metric_for_best_model": "eval_loss"},
        {"do_eval": True, "debug": "underflow_overflow", "report_to": "none", "hub_token": "secret"},
        {"lr_scheduler_kwargs": '{"num_cycles": "2", "power": "0.5", "deep": {"flag": "True"}}'},
        {"accelerator_config": {"even_batches": False, "non_blocking": True}},
        {"optim": "sgd", "torch_compile_mode": "default"},
        {"fsdp_config": {"fsdp_backward_prefetch": "backward_pre"}, "logging_strategy": "no", "logging_steps": 0},
        {
            "warmup_ratio": 0.1,
            "warmup_steps": 3,
            "bf16": True,
            "gradient_checkpointing_kwargs": '{"use_reentrant": "false"}',
        },
        {"output_dir": "~/runs", "logging_dir": "~/logs"},
    ],
)
def test_construction_makes_the_same_of_arguments(given, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # the reference sets it
    for name in ("BACKEND", "MODE"):
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "no")
    given = dict(given)
    output_dir = given.pop("output_dir", None)
    ours, expected = (
        dictionaries(**given)
        if output_dir is None
        else (kind(output_dir=output_dir, use_cpu=True, **given).to_dict() for kind in (TrainingArguments, Reference))
    )
    assert ours == expected
    assert list(ours) == list(expected)


def test_text_and_json_are_the_references():
    given = {"output_dir": "out", "logging_dir": "logs", "use_cpu": True, "hub_token": "secret"}
    ours, expected = TrainingArguments(**given), Reference(**given)
    assert ours.device == expected.device
    assert ours.n_gpu == 0
    assert str(ours) == repr(ours) == str(expected)
    assert ours.to_json_string() == expected.to_json_string()
    assert "secret" not in str(ours) + ours.to_json_string()
    assert ours.to_sanitized_dict() == expected.to_sanitized_dict()


def test_properties_of_one_process_are_the_references():
    given = {"output_dir": "out", "use_cpu": True, "per_device_train_batch_size": 3, "warmup_ratio": 0.13}
    ours, expected = TrainingArguments(**given), Reference(**given)
    names = (
        "device n_gpu world_size process_index local_process_index local_rank should_log should_save train_batch_size "
        "eval_batch_size ddp_timeout_delta place_model_on_device framework"
    )
    for name in names.split():
        assert getattr(ours, name) == getattr(expected, name), name
    assert ours.ddp_timeout_delta == timedelta(minutes=30)
    assert ours.parallel_mode.value == expected.parallel_mode.value
    assert [ours.get_warmup_steps(n) for n in (0, 1, 99)] == [expected.get_warmup_steps(n) for n in (0, 1, 99)]
    assert ours.get_process_log_level() == expected.get_process_log_level()
    with ours.main_process_first(desc="nothing"):
        pass


def test_strategies_compare_with_text_and_with_the_references_members():
    args = TrainingArguments("out", eval_strategy="epoch", save_strategy="epoch")
    assert args.eval_strategy == "epoch" == transformers.IntervalStrategy.EPOCH
    assert args.eval_strategy == args.save_strategy
    assert args.eval_strategy.value == "epoch"


def test_arguments_survive_pickle_replacement_and_derivation():
    @dataclasses.dataclass
    class Derived(TrainingArguments):
        temperature: float = dataclasses.field(default=1.0, metadata={"help": "Of distillation."})

    args = TrainingArguments("out", logging_dir="logs", learning_rate=1e-3)
    assert pickle.loads(pickle.dumps(args)) == args
    assert dataclasses.replace(args, seed=7).to_dict() == {**args.to_dict(), "seed": 7}
    derived = Derived("out", temperature=2.0, eval_strategy="epoch")
    assert derived.do_eval
    assert json.loads(derived.to_json_string())["temperature"] == 2.0
    assert list(inspect.signature(Derived).parameters)[-1] == "temperature"
    with pytest.raises(TypeError, match="Derived has no argument 'temprature'; did you mean 'temperature'"):
        Derived("out", temprature=2.0)
