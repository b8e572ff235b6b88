"""The fields of `TrainingArguments`: names, types and defaults of Transformers 4.56, and one line of help each.

The types are read at run time by `HfArgumentParser`, which makes an option of the command line of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from gptrio.training.enums import (
    DebugOption,
    FSDPOption,
    HubStrategy,
    IntervalStrategy,
    OptimizerNames,
    SaveStrategy,
    SchedulerType,
)
from gptrio.utils.installed import installed_version
from gptrio.utils.logging import log_levels

LOG_LEVELS = {**log_levels, "passive": -1}
_BACKENDS = ("nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl")
_PRECISION = ("auto", "apex", "cpu_amp")


def _default_optimizer() -> str:
    """torch's AdamW, in its fused form from torch 2.8 on."""
    parts = (installed_version("torch") or "0").split(".")
    return "adamw_torch_fused" if (int(parts[0]), int(parts[1] if len(parts) > 1 else 0)) >= (2, 8) else "adamw_torch"


def _arg(default: Any, help: str, choices: Iterable[str] | None = None) -> Any:
    """Declare a field; a class as the default is called for each object."""
    metadata = {"help": help} | ({} if choices is None else {"choices": list(choices)})
    if isinstance(default, type):
        factory: Callable[[], Any] = default
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(repr=False)
class ArgumentFields:
    """Every argument of a training run, as given."""

    output_dir: str | None = _arg(None, "Folder of checkpoints and results; 'trainer_output' by default.")
    overwrite_output_dir: bool = _arg(False, "Go on in an output folder that is not empty.")
    do_train: bool = _arg(False, "Train; read by scripts, not by Trainer.")
    do_eval: bool = _arg(False, "Evaluate; read by scripts. Set by any eval_strategy but 'no'.")
    do_predict: bool = _arg(False, "Predict; read by scripts, not by Trainer.")
    eval_strategy: IntervalStrategy | str = _arg("no", "When to evaluate during training.")
    prediction_loss_only: bool = _arg(False, "Evaluate and predict the loss alone.")
    per_device_train_batch_size: int = _arg(8, "Rows of a batch on each device, in training.")
    per_device_eval_batch_size: int = _arg(8, "Rows of a batch on each device, in evaluation.")
    per_gpu_train_batch_size: int | None = _arg(None, "Deprecated: use per_device_train_batch_size.")
    per_gpu_eval_batch_size: int | None = _arg(None, "Deprecated: use per_device_eval_batch_size.")
    gradient_accumulation_steps: int = _arg(1, "Batches whose gradients one update sums.")
    eval_accumulation_steps: int | None = _arg(None, "Batches after which results of an evaluation go to the CPU.")
    eval_delay: float | None = _arg(0, "Epochs or updates before the first evaluation, as eval_strategy counts.")
    torch_empty_cache_steps: int | None = _arg(None, "Updates between two calls of torch's empty_cache.")
    learning_rate: float = _arg(5e-5, "Highest learning rate.")
    weight_decay: float = _arg(0.0, "Weight decay of all weights but biases and layer norms.")
    adam_beta1: float = _arg(0.9, "Beta 1 of AdamW.")
    adam_beta2: float = _arg(0.999, "Beta 2 of AdamW.")
    adam_epsilon: float = _arg(1e-8, "Epsilon of AdamW.")
    max_grad_norm: float = _arg(1.0, "Gradients are scaled down to this norm; 0 leaves them.")
    num_train_epochs: float = _arg(3.0, "Epochs of training; a fraction ends within an epoch.")
    max_steps: int = _arg(-1, "Updates of training, instead of num_train_epochs, if positive.")
    lr_scheduler_type: SchedulerType | str = _arg("linear", "Schedule of the learning rate.")
    lr_scheduler_kwargs: dict[str, Any] | str | None = _arg(dict, "Arguments of the schedule, as {'num_cycles': 1}.")
    warmup_ratio: float = _arg(0.0, "Share of all updates in which the learning rate rises.")
    warmup_steps: int = _arg(0, "Updates in which the learning rate rises; goes before warmup_ratio.")
    log_level: str = _arg("passive", "Level of the log on the main process; 'passive' leaves it.", LOG_LEVELS)
    log_level_replica: str = _arg("warning", "Level of the log on other processes.", LOG_LEVELS)
    log_on_each_node: bool = _arg(True, "Log once on each machine, or on the first one only.")
    logging_dir: str | None = _arg(None, "Folder of logs for TensorBoard; runs/DATE_HOST of output_dir by default.")
    logging_strategy: IntervalStrategy | str = _arg("steps", "When to log.")
    logging_first_step: bool = _arg(False, "Log the first update too.")
    logging_steps: float = _arg(500, "Updates between two logs, or a share of all updates if below 1.")
    logging_nan_inf_filter: bool = _arg(True, "Log the mean of other losses in place of one that is not finite.")
    save_strategy: SaveStrategy | str = _arg("steps", "When to save a checkpoint.")
    save_steps: float = _arg(500, "Updates between two checkpoints, or a share of all updates if below 1.")
    save_total_limit: int | None = _arg(None, "Checkpoints to keep, the best one among them; all by default.")
    save_safetensors: bool | None = _arg(True, "Save weights as safetensors.")
    save_on_each_node: bool = _arg(False, "Save on every machine, or on the first one only.")
    save_only_model: bool = _arg(False, "Leave optimizer, schedule and generators out; such checkpoints cannot resume.")
    restore_callback_states_from_checkpoint: bool = _arg(False, "Give callbacks the states that a checkpoint holds.")
    no_cuda: bool = _arg(False, "Deprecated: use use_cpu.")
    use_cpu: bool = _arg(False, "Train on the CPU even if there is a GPU.")
    use_mps_device: bool = _arg(False, "Refused: an Apple GPU is used where there is one.")
    seed: int = _arg(42, "Seed of every random number.")
    data_seed: int | None = _arg(None, "Seed of the order of the data; that of `seed` by default.")
    jit_mode_eval: bool = _arg(False, "Has no effect.")
    use_ipex: bool = _arg(False, "Has no effect.")
    bf16: bool = _arg(False, "Compute in bfloat16, with weights in float32.")
    fp16: bool = _arg(False, "Compute in float16, with weights in float32; on GPUs.")
    fp16_opt_level: str = _arg("O1", "Has no effect.")
    half_precision_backend: str = _arg("auto", "Has no effect: torch's autocast is used.", _PRECISION)
    bf16_full_eval: bool = _arg(False, "Evaluate with weights in bfloat16.")
    fp16_full_eval: bool = _arg(False, "Evaluate with weights in float16.")
    tf32: bool | None = _arg(None, "Let NVIDIA GPUs multiply float32 as TF32, or not; torch's setting by default.")
    local_rank: int = _arg(-1, "Number of the process on its machine; set by torchrun.")
    ddp_backend: str | None = _arg(None, "How processes talk to each other.", _BACKENDS)
    tpu_num_cores: int | None = _arg(None, "Refused: there is no TPU here but by gptrio.jax.")
    tpu_metrics_debug: bool = _arg(False, "Refused, as tpu_num_cores.")
    debug: str | list[DebugOption] = _arg("", "'underflow_overflow' names the first tensor that is not finite.")
    dataloader_drop_last: bool = _arg(False, "Leave out a last batch that is not full.")
    eval_steps: float | None = _arg(None, "Updates between two evaluations, or a share if below 1; else logging_steps.")
    dataloader_num_workers: int = _arg(0, "Processes that load data; 0: the training process does.")
    dataloader_prefetch_factor: int | None = _arg(None, "Batches that each such process loads ahead.")
    past_index: int = _arg(-1, "Has no effect.")
    run_name: str | None = _arg(None, "Name of the run in trackio and wandb.")
    disable_tqdm: bool | None = _arg(None, "Print logs instead of a progress bar.")
    remove_unused_columns: bool | None = _arg(True, "Leave out columns that the model's forward does not take.")
    label_names: list[str] | None = _arg(None, "Names of the inputs that are labels.")
    load_best_model_at_end: bool | None = _arg(False, "End with the weights of the best checkpoint.")
    metric_for_best_model: str | None = _arg(None, "Figure of the evaluation that says which model is best; the loss.")
    greater_is_better: bool | None = _arg(None, "Whether more of it is better; false for names that end in 'loss'.")
    ignore_data_skip: bool = _arg(False, "Resume at the first batch of the data, not where the run had ended.")
    fsdp: list[FSDPOption] | str | None = _arg("", "Shard parameters over processes: 'full_shard', with 'offload'.")
    fsdp_min_num_params: int = _arg(0, "Deprecated: use fsdp_config={'min_num_params': ...}.")
    fsdp_config: dict[str, Any] | str | None = _arg(None, "Settings of fsdp, or a JSON file of them.")
    fsdp_transformer_layer_cls_to_wrap: str | None = _arg(
        None, "Deprecated: use fsdp_config={'transformer_layer_cls_to_wrap': ...}."
    )
    accelerator_config: dict[str, Any] | str | None = _arg(None, "Settings of accelerate, or a JSON file of them.")
    parallelism_config: Any | None = _arg(None, "Refused, as deepspeed.")
    deepspeed: dict[str, Any] | str | None = _arg(None, "Refused: use fsdp.")
    label_smoothing_factor: float = _arg(0.0, "Share of each label that is spread over all classes.")
    optim: OptimizerNames | str = _arg(_default_optimizer(), "Optimizer.")
    optim_args: str | None = _arg(None, "More arguments of the optimizer, as 'momentum=0.9,nesterov=True'.")
    adafactor: bool = _arg(False, "Deprecated: use optim='adafactor'.")
    group_by_length: bool = _arg(False, "Put rows of similar length into one batch.")
    length_column_name: str | None = _arg("length", "Column of lengths for group_by_length.")
    report_to: list[str] | str | None = _arg(None, "Where to report logs: names, 'all' that are installed, or 'none'.")
    ddp_find_unused_parameters: bool | None = _arg(None, "Argument of torch's DistributedDataParallel.")
    ddp_bucket_cap_mb: int | None = _arg(None, "Argument of torch's DistributedDataParallel: bucket_cap_mb.")
    ddp_broadcast_buffers: bool | None = _arg(None, "Argument of torch's DistributedDataParallel.")
    dataloader_pin_memory: bool = _arg(True, "Load batches into pinned memory, for a GPU.")
    dataloader_persistent_workers: bool = _arg(False, "Keep the processes that load data between epochs.")
    skip_memory_metrics: bool = _arg(True, "Leave memory out of the figures.")
    use_legacy_prediction_loop: bool = _arg(False, "Has no effect.")
    push_to_hub: bool = _arg(False, "Push the model to the hub as hub_strategy says.")
    resume_from_checkpoint: str | None = _arg(None, "Folder of a checkpoint; read by scripts, not by Trainer.")
    hub_model_id: str | None = _arg(None, "Repository to push to; named as output_dir by default.")
    hub_strategy: HubStrategy | str = _arg("every_save", "What to push, and when.")
    hub_token: str | None = _arg(None, "Token for the hub; that of the login by default.")
    hub_private_repo: bool | None = _arg(None, "Whether a new repository is private.")
    hub_always_push: bool = _arg(False, "Push even if the push before has not ended.")
    hub_revision: str | None = _arg(None, "Branch to push to.")
    gradient_checkpointing: bool = _arg(False, "Save memory: compute activations again in the backward pass.")
    gradient_checkpointing_kwargs: dict[str, Any] | str | None = _arg(None, "Arguments of torch's checkpoint.")
    include_inputs_for_metrics: bool = _arg(False, "Deprecated: use include_for_metrics=['inputs'].")
    include_for_metrics: list[str] = _arg(list, "What else compute_metrics gets: 'inputs', 'loss'.")
    eval_do_concat_batches: bool = _arg(True, "Join the results of batches, or keep a list of them.")
    fp16_backend: str = _arg("auto", "Deprecated: use half_precision_backend.", _PRECISION)
    push_to_hub_model_id: str | None = _arg(None, "Deprecated: use hub_model_id.")
    push_to_hub_organization: str | None = _arg(None, "Deprecated: use hub_model_id='organization/name'.")
    push_to_hub_token: str | None = _arg(None, "Deprecated: use hub_token.")
    _n_gpu: int = field(init=False, repr=False, default=-1)
    mp_parameters: str = _arg("", "Has no effect.")
    auto_find_batch_size: bool = _arg(False, "Begin again with smaller batches where memory does not suffice.")
    full_determinism: bool = _arg(False, "Use deterministic algorithms only, which are slower.")
    torchdynamo: str | None = _arg(None, "Deprecated: use torch_compile_backend.")
    ray_scope: str | None = _arg("last", "Has no effect.")
    ddp_timeout: int = _arg(1800, "Seconds that a process waits for the others.")
    torch_compile: bool = _arg(False, "Compile the model with torch.compile.")
    torch_compile_backend: str | None = _arg(None, "Back end of torch.compile; switches it on.")
    torch_compile_mode: str | None = _arg(None, "Mode of torch.compile; switches it on.")
    include_tokens_per_second: bool | None = _arg(False, "Report tokens per second.")
    include_num_input_tokens_seen: bool | None = _arg(False, "Count the tokens of all inputs.")
    neftune_noise_alpha: float | None = _arg(None, "Noise on embeddings in training (NEFTune); none by default.")
    optim_target_modules: list[str] | str | None = _arg(None, "Refused: it belongs to optimizers that are not here.")
    batch_eval_metrics: bool = _arg(False, "Call compute_metrics for each batch, so that no results are kept.")
    eval_on_start: bool = _arg(False, "Evaluate before training, too.")
    use_liger_kernel: bool | None = _arg(False, "Has no effect: the loss never holds all logits.")
    liger_kernel_config: dict[str, bool] | None = _arg(None, "Has no effect.")
    eval_use_gather_object: bool | None = _arg(False, "Gather results of evaluations as objects.")
    average_tokens_across_devices: bool | None = _arg(True, "Divide the loss by the tokens of all processes.")


_KINDS = {item.name: str(item.type).removesuffix(" | None") for item in fields(ArgumentFields)}
NUMBERS: dict[str, Callable[[str], float]] = {
    name: int if kind == "int" else float for name, kind in _KINDS.items() if kind in ("int", "float")
}
