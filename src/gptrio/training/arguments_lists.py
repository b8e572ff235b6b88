"""Names of training arguments that do not mean what they say: deprecated, without effect, or refused."""

from __future__ import annotations

import dataclasses
from typing import Any

from gptrio.errors import UnknownNameError, UnsupportedError, nearest, warn
from gptrio.training.arguments_fields import ArgumentFields
from gptrio.training.enums import BITSANDBYTES_OPTIMIZERS, TORCH_OPTIMIZERS, OptimizerNames

ALIASES = {
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
    "include_inputs_for_metrics": "include_for_metrics=['inputs']",
    "adafactor": "optim='adafactor'",
    "fp16_backend": "half_precision_backend",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_organization": "hub_model_id='organization/name'",
    "push_to_hub_token": "hub_token",
    "fsdp_min_num_params": "fsdp_config={'min_num_params': ...}",
    "fsdp_transformer_layer_cls_to_wrap": "fsdp_config={'transformer_layer_cls_to_wrap': ...}",
    "torchdynamo": "torch_compile_backend",
}
_AUTOCAST = "half precision is torch's autocast"
NO_EFFECT = {
    "use_liger_kernel": "the loss never holds all logits",
    "liger_kernel_config": "the loss never holds all logits",
    "use_ipex": "torch has what it added",
    "jit_mode_eval": "models are not traced; torch_compile=True compiles them",
    "past_index": "no model of these families returns a state for the next batch",
    "half_precision_backend": _AUTOCAST,
    "fp16_opt_level": _AUTOCAST,
    "mp_parameters": "SageMaker's model parallelism is not used",
    "ray_scope": "there is no hyperparameter search",
    "use_legacy_prediction_loop": "there is one loop",
}
REFUSED = {
    "deepspeed": "start the script by torchrun, which divides the rows among the GPUs",
    "parallelism_config": "start the script by torchrun, which divides the rows among the GPUs",
    "tpu_num_cores": "TPUs are used through JAX: see gptrio.jax.training",
    "tpu_metrics_debug": "TPUs are used through JAX: see gptrio.jax.training",
    "use_mps_device": "leave it out: an Apple GPU is used where there is one",
    "optim_target_modules": "pass optimizers=(optimizer, scheduler) to Trainer, built for the parameters you want",
}
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(ArgumentFields)}
_BUILT = TORCH_OPTIMIZERS | BITSANDBYTES_OPTIMIZERS
_said: set[str] = set()  # names whose lack of effect was said in this process


def deprecated(name: str, instead: str) -> None:
    """Warn, where the arguments were made, that a name is deprecated."""
    warn(f"{name} is deprecated; use {instead} instead", DeprecationWarning)


def is_given(args: Any, name: str) -> bool:
    """Whether an argument has another value than its default."""
    return bool(getattr(args, name) != _DEFAULTS[name])


def refuse(args: ArgumentFields) -> None:
    """Raise UnsupportedError for the first argument that asks for what there is not."""
    for name, way_out in REFUSED.items():
        if is_given(args, name):
            raise UnsupportedError(f"{name}={getattr(args, name)!r} is not supported; {way_out}")


def say_no_effect(args: ArgumentFields) -> None:
    """Warn, once in a process, of each argument without effect."""
    for name, reason in NO_EFFECT.items():
        if is_given(args, name) and name not in _said:
            _said.add(name)
            warn(f"{name}={getattr(args, name)!r} has no effect: {reason}")


def known_optimizer(name: str | OptimizerNames) -> OptimizerNames:
    """The optimizer of a name.

    Raises:
        UnknownNameError: no optimizer has the name.
        UnsupportedError: one has, but it is not built here.
    """
    built = {optimizer.value: optimizer for optimizer in OptimizerNames if optimizer in _BUILT}
    text = getattr(name, "value", name)
    if text in built:
        return built[text]
    names = ", ".join(built)
    if any(text == optimizer.value for optimizer in OptimizerNames):
        raise UnsupportedError(
            f"optim={text!r} is not built in; pass optimizers=(optimizer, scheduler) to Trainer, or use one of {names}"
        )
    hint = nearest(str(text), built, before="; ")
    raise UnknownNameError(f"optim={text!r} is not an optimizer; expected one of {names}{hint}")
