"""All 132 names of Transformers' training arguments: honoured, deprecated, without effect, or refused."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

from gptrio import GptrioWarning, OptionError, TrainingArguments, UnknownNameError, UnsupportedError
from gptrio.training import arguments_lists
from gptrio.training.arguments_lists import ALIASES, NO_EFFECT, REFUSED
from gptrio.training.enums import BITSANDBYTES_OPTIMIZERS, TORCH_OPTIMIZERS, OptimizerNames

HONOURED = {  # a value that is not the default, with what else it needs
    "output_dir": "elsewhere",
    "overwrite_output_dir": True,
    "do_train": True,
    "do_eval": True,
    "do_predict": True,
    "eval_strategy": "epoch",
    "prediction_loss_only": True,
    "per_device_train_batch_size": 3,
    "per_device_eval_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "eval_accumulation_steps": 2,
    "eval_delay": 1.5,
    "torch_empty_cache_steps": 10,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-6,
    "max_grad_norm": 0.5,
    "num_train_epochs": 1.5,
    "max_steps": 12,
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "warmup_ratio": 0.1,
    "warmup_steps": 5,
    "log_level": "info",
    "log_level_replica": "error",
    "log_on_each_node": False,
    "logging_dir": "logs",
    "logging_strategy": "epoch",
    "logging_first_step": True,
    "logging_steps": 0.1,
    "logging_nan_inf_filter": False,
    "save_strategy": "best",
    "save_steps": 7,
    "save_total_limit": 2,
    "save_safetensors": False,
    "save_on_each_node": True,
    "save_only_model": True,
    "restore_callback_states_from_checkpoint": True,
    "use_cpu": True,
    "seed": 7,
    "data_seed": 8,
    "bf16": True,
    "fp16": True,
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "tf32": False,
    "local_rank": 0,
    "ddp_backend": "gloo",
    "debug": "underflow_overflow",
    "dataloader_drop_last": True,
    "eval_steps": 3,
    "dataloader_num_workers": 2,
    "dataloader_prefetch_factor": 4,
    "run_name": "a run",
    "disable_tqdm": True,
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "greater_is_better": True,
    "ignore_data_skip": True,
    "fsdp": "full_shard auto_wrap",
    "fsdp_config": {"min_num_params": 0},
    "accelerator_config": {"even_batches": False},
    "label_smoothing_factor": 0.1,
    "optim": "adafactor",
    "optim_args": "momentum=0.9",
    "group_by_length": True,
    "length_column_name": "words",
    "report_to": "csv",
    "ddp_find_unused_parameters": True,
    "ddp_bucket_cap_mb": 10,
    "ddp_broadcast_buffers": True,
    "dataloader_pin_memory": False,
    "dataloader_persistent_workers": True,
    "skip_memory_metrics": False,
    "push_to_hub": True,
    "resume_from_checkpoint": "out/checkpoint-1",
    "hub_model_id": "owner/name",
    "hub_strategy": "end",
    "hub_token": "secret",
    "hub_private_repo": True,
    "hub_always_push": True,
    "hub_revision": "branch",
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "include_for_metrics": ["loss"],
    "eval_do_concat_batches": False,
    "auto_find_batch_size": True,
    "full_determinism": True,
    "ddp_timeout": 60,
    "torch_compile": True,
    "torch_compile_backend": "eager",
    "torch_compile_mode": "default",
    "include_tokens_per_second": True,
    "include_num_input_tokens_seen": True,
    "neftune_noise_alpha": 5.0,
    "batch_eval_metrics": True,
    "eval_on_start": True,
    "eval_use_gather_object": True,
    "average_tokens_across_devices": False,
}
OTHERS = {  # what an argument needs beside it
    "dataloader_prefetch_factor": {"dataloader_num_workers": 2},
    "load_best_model_at_end": {"save_strategy": "best"},
}
DEPRECATED = {  # value, and what it sets
    "per_gpu_train_batch_size": (3, "train_batch_size", 3),
    "per_gpu_eval_batch_size": (3, "eval_batch_size", 3),
    "no_cuda": (True, "use_cpu", True),
    "include_inputs_for_metrics": (True, "include_for_metrics", ["inputs"]),
    "adafactor": (True, "optim", OptimizerNames.ADAFACTOR),
    "push_to_hub_model_id": ("name", "hub_model_id", "name"),
    "push_to_hub_organization": ("owner", "hub_model_id", "owner/out"),
    "push_to_hub_token": ("secret", "hub_token", "secret"),
    "torchdynamo": ("eager", "torch_compile_backend", "eager"),
}
WITHOUT_EFFECT = {
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "use_ipex": True,
    "jit_mode_eval": True,
    "past_index": 1,
    "half_precision_backend": "cpu_amp",
    "fp16_opt_level": "O2",
    "mp_parameters": "x",
    "ray_scope": "all",
    "use_legacy_prediction_loop": True,
}
NOT_HERE = {
    "deepspeed": ("ds.json", "torchrun"),
    "parallelism_config": (object(), "torchrun"),
    "tpu_num_cores": (8, r"gptrio\.jax"),
    "tpu_metrics_debug": (True, r"gptrio\.jax"),
    "use_mps_device": (True, "an Apple GPU is used where there is one"),
    "optim_target_modules": ("all", "optimizers="),
}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(arguments_lists, "_said", set())


def test_every_name_is_in_one_list():
    names = [field.name for field in dataclasses.fields(TrainingArguments)]
    lists = [HONOURED, ALIASES, NO_EFFECT, REFUSED]
    assert sorted(name for group in lists for name in group) == sorted({*names} - {"_n_gpu"})
    assert len(names) == 132
    assert (
        DEPRECATED.keys() | {"fp16_backend", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"}
        == ALIASES.keys()
    )
    assert WITHOUT_EFFECT.keys() == NO_EFFECT.keys()
    assert NOT_HERE.keys() == REFUSED.keys()


@pytest.mark.parametrize("name", [name for name in HONOURED if name != "fp16"])
def test_honoured_names_keep_their_value_without_a_warning(name):
    precision = torch.get_float32_matmul_precision()
    args = TrainingArguments(**{"output_dir": "out", **OTHERS.get(name, {}), name: HONOURED[name]})
    value, expected = getattr(args, name), HONOURED[name]
    if name == "fsdp":
        expected = expected.split()
    if name in ("debug", "report_to"):
        expected = [expected]
    if name in ("accelerator_config", "fsdp_config"):
        value = value if isinstance(value, dict) else value.to_dict()
        assert value.items() >= expected.items()
    else:
        assert value == expected
    assert value != {field.name: field.default for field in dataclasses.fields(args)}[name] or name == "data_seed"
    assert torch.get_float32_matmul_precision() == precision  # only GPUs have TF32


@pytest.mark.parametrize("name", DEPRECATED)
def test_deprecated_names_work_and_name_the_new_one(name):
    value, changed, expected = DEPRECATED[name]
    with pytest.warns(DeprecationWarning) as caught:
        args = TrainingArguments("out", **{name: value})
    assert str(caught[0].message) == f"{name} is deprecated; use {ALIASES[name]} instead"
    assert caught[0].filename == __file__
    assert getattr(args, changed) == expected


def test_deprecated_settings_of_fsdp_go_into_its_configuration():
    with pytest.warns(DeprecationWarning, match="fsdp_min_num_params is deprecated"):
        args = TrainingArguments("out", fsdp="full_shard", fsdp_min_num_params=9, fsdp_config={"min_num_params": 3})
    assert args.fsdp_config["min_num_params"] == 9
    with pytest.warns(DeprecationWarning, match="fsdp_transformer_layer_cls_to_wrap is deprecated"):
        args = TrainingArguments(
            "out",
            fsdp=True,
            fsdp_transformer_layer_cls_to_wrap="GPT2Block",
            fsdp_config={"transformer_layer_cls_to_wrap": "Other"},
        )
    assert args.fsdp_config["transformer_layer_cls_to_wrap"] == ["Other", "GPT2Block"]
    assert args.fsdp == ["full_shard"]


def test_the_back_end_of_half_precision_is_said_to_have_no_effect_under_both_names():
    with (
        pytest.warns(DeprecationWarning, match="fp16_backend is deprecated"),
        pytest.warns(GptrioWarning, match="half_precision_backend='cpu_amp' has no effect"),
    ):
        TrainingArguments("out", fp16_backend="cpu_amp")


def test_the_strategy_of_evaluation_has_its_earlier_name():
    with pytest.warns(DeprecationWarning, match="evaluation_strategy is deprecated; use eval_strategy instead"):
        args = TrainingArguments("out", evaluation_strategy="epoch")
    assert (args.eval_strategy, args.do_eval) == ("epoch", True)
    with pytest.warns(DeprecationWarning, match="evaluation_strategy"):
        assert args.evaluation_strategy == "epoch"


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_names_without_effect_are_said_once(name):
    with pytest.warns(GptrioWarning, match=f"^{name}=.* has no effect: ") as caught:
        TrainingArguments("out", **{name: WITHOUT_EFFECT[name]})
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert getattr(TrainingArguments("out", **{name: WITHOUT_EFFECT[name]}), name) == WITHOUT_EFFECT[name]


@pytest.mark.parametrize("name", NOT_HERE)
def test_refused_names_are_errors_with_the_way_out(name):
    value, way_out = NOT_HERE[name]
    with pytest.raises(UnsupportedError, match=f"^{name}={value!r} is not supported; .*{way_out}"):
        TrainingArguments("out", **{name: value})


@pytest.mark.parametrize("optimizer", [item.value for item in OptimizerNames])
def test_optimizers_are_built_or_refused(optimizer):
    if OptimizerNames(optimizer) in TORCH_OPTIMIZERS | BITSANDBYTES_OPTIMIZERS:
        assert TrainingArguments("out", optim=optimizer).set_optimizer(optimizer).optim == optimizer
        return
    with pytest.raises(UnsupportedError, match=f"optim='{optimizer}' is not built in; pass optimizers="):
        TrainingArguments("out", optim=optimizer)
    with pytest.raises(UnsupportedError, match=f"optim='{optimizer}' is not built in"):
        TrainingArguments("out").set_optimizer(optimizer)


WRONG = [
    ({"eval_strategy": "step"}, r"eval_strategy: 'step' is not a valid IntervalStrategy; .*; did you mean 'steps'\?"),
    ({"optim": "adamw_hf"}, "optim='adamw_hf' is not an optimizer; expected one of adamw_torch, "),
    ({"fp16": True}, "fp16=True needs a GPU.*; use bf16=True instead"),
    ({"fp16": True, "bf16": True}, "fp16=True and bf16=True contradict"),
    ({"fp16_full_eval": True, "bf16_full_eval": True}, "fp16_full_eval=True and bf16_full_eval=True contradict"),
    ({"tf32": True}, "tf32=True needs an NVIDIA GPU"),
    ({"eval_strategy": "steps", "logging_strategy": "no", "logging_steps": 0}, "needs eval_steps or logging_steps"),
    ({"logging_steps": 0}, "logging_strategy='steps' needs logging_steps; it is 0"),
    ({"logging_steps": 1.5}, "logging_steps=1.5 is not whole"),
    ({"eval_strategy": "steps", "eval_steps": 2.5}, "eval_steps=2.5 is not whole"),
    ({"save_steps": 2.5}, "save_steps=2.5 is not whole"),
    ({"load_best_model_at_end": True}, "eval_strategy='no' and save_strategy='steps'; set them to the same"),
    (
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 300},
        "save_steps=500 to be a multiple of eval_steps=300",
    ),
    (
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 0.3},
        "save_steps=500 to be a multiple of eval_steps=0.3",
    ),
    (
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 0.3, "save_steps": 0.5},
        "save_steps=0.5 to be a multiple of eval_steps=0.3",
    ),
    ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "needs evaluations; set eval_strategy"),
    ({"warmup_ratio": 1.5}, "warmup_ratio=1.5 is out of range"),
    ({"warmup_steps": -1}, "warmup_steps=-1 is out of range"),
    ({"warmup_steps": 0.5}, "warmup_steps=0.5 is out of range"),
    ({"torch_empty_cache_steps": 0}, "torch_empty_cache_steps=0 is out of range"),
    ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor=2 needs processes that load data"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0 is out of range"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0 is out of range"),
    ({"learning_rate": "fast"}, "learning_rate='fast' is not a number"),
    ({"lr_scheduler_kwargs": "{broken"}, "lr_scheduler_kwargs='{broken' is not valid JSON"),
    (
        {"report_to": "mlflow"},
        "report_to='mlflow' is not one of tensorboard, trackio, wandb, csv; pass a TrainerCallback",
    ),
    ({"report_to": ["tensorbord"]}, "did you mean 'tensorboard'"),
    ({"debug": "tpu_metrics_debug"}, "is for TPUs"),
    ({"fsdp": "offload"}, "fsdp='offload' says how, but not what"),
    ({"fsdp": "full_shard shard_grad_op"}, "both full_shard and shard_grad_op"),
    ({"fsdp_config": {"xla": True}}, "fsdp_config asks for XLA"),
    ({"accelerator_config": {"even_batch": 1}}, "has no setting 'even_batch'; did you mean 'even_batches'"),
    ({"accelerator_config": dict}, "is a class"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_wrong_values_are_errors_that_name_them(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        TrainingArguments("out", **{"use_cpu": True, **given})
    assert isinstance(caught.value, (OptionError, UnsupportedError, UnknownNameError))


def test_settings_of_fsdp_without_fsdp_are_said():
    with pytest.warns(GptrioWarning, match="fsdp_config has min_num_params, but nothing is sharded"):
        TrainingArguments("out", fsdp_config={"min_num_params": 5})
    wrong = {"min_num_params": 5, "transformer_layer_cls_to_wrap": "GPT2Block"}
    with pytest.raises(OptionError, match="min_num_params and transformer_layer_cls_to_wrap; expected one of them"):
        TrainingArguments("out", fsdp="full_shard", fsdp_config=wrong)
    with pytest.raises(OptionError, match="sync_module_states must be True"):
        TrainingArguments(
            "out", fsdp_config={"fsdp_cpu_ram_efficient_loading": True, "fsdp_sync_module_states": "false"}
        )
