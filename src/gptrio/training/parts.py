"""What the parts of `Trainer` share: its attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from gptrio.training.callback_handler import CallbackHandler
    from gptrio.training.enums import HPSearchBackend
    from gptrio.training.interruption import Interruption
    from gptrio.training.memory_metrics import MemoryMetrics
    from gptrio.training.run_folder import RunFolder
    from gptrio.training.snapshot import Position
    from gptrio.training.state import TrainerControl, TrainerState


class TrainerParts:
    """Attributes of `Trainer`, which its parts read and set; the names are those of Transformers 4.56.

    Attributes:
        args: `TrainingArguments`.
        model: the model itself.
        model_wrapped: what the forward pass calls: the model, or what wraps it.
        optimizer, lr_scheduler: None until training begins, unless they were given.
        state, control: where the run is, and what is to happen next.
        accelerator: the device, number formats and processes; the names are those of accelerate's `Accelerator`.
        gather_function: puts the rows of all processes together; what a subclass sets is for the next evaluation.
        is_in_train: whether `train` is running.
        label_names: inputs that are labels.
        label_smoother: the loss of label smoothing, or None.
        model_accepts_loss_kwargs: whether the model takes `num_items_in_batch` and divides its loss by it.
        current_gradient_accumulation_steps: batches of the update that is being computed.
    """

    args: Any
    model: Any
    model_wrapped: Any
    optimizer: Any
    lr_scheduler: Any
    state: TrainerState
    control: TrainerControl
    callback_handler: CallbackHandler
    accelerator: Any
    gather_function: Callable[[Any], Any]
    processing_class: Any
    data_collator: Callable[[list[Any]], Any]
    train_dataset: Any
    eval_dataset: Any
    compute_metrics: Callable[..., dict[str, Any]] | None
    preprocess_logits_for_metrics: Callable[[Any, Any], Any] | None
    compute_loss_func: Callable[..., Any] | None
    label_smoother: Any
    label_names: list[str]
    can_return_loss: bool
    model_accepts_loss_kwargs: bool
    current_gradient_accumulation_steps: int
    current_flos: float
    is_in_train: bool
    hub_model_id: str | None
    optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None
    _train_batch_size: int
    _created_lr_scheduler: bool
    _signature_columns: list[str] | None
    _batch_weight: float
    _is_silent: bool
    neftune_noise_alpha: float | None
    neftune_hook_handle: Any
    _interruption: Interruption
    _total_loss_scalar: float
    _globalstep_last_logged: int
    _run_folder: RunFolder
    _memory: MemoryMetrics
    hp_search_backend: HPSearchBackend | None
    hp_name: Callable[..., str] | None
    _trial: Any
    _position: Position
    _unlogged_loss: Tensor
    _mean_loss: Tensor
    _written: tuple[Path, dict[str, tuple[int, int]]] | None
    _whole_state: dict[str, Tensor] | None
    _epoch_random: Mapping[str, Any] | None
    _resumed_random: Mapping[str, Any] | None
    _forward_options: dict[str, Any]
    _predicts_next_tokens: bool
    _has_own_loss: bool
    _omits_logits: bool
    _is_prepared: bool

    # methods that parts call before they are defined, in `Trainer` or in a part that builds on the caller
    _wrap_model: Callable[..., Any]
    _is_cast_for_evaluation: Callable[..., Any]
    _move_model_to_device: Callable[..., Any]
    _set_model: Callable[..., Any]
    _align_special_tokens: Callable[..., Any]
    call_model_init: Callable[..., Any]
    create_accelerator_and_postprocess: Callable[[], None]
    save_model: Callable[..., None]
    train: Callable[..., Any]

    def is_local_process_zero(self) -> bool:
        """Whether this is the first process of its machine."""
        return bool(self.args.local_process_index == 0)

    def is_world_process_zero(self) -> bool:
        """Whether this is the first process of all."""
        return bool(self.args.process_index == 0)


def innermost(model: Any) -> Any:
    """The model inside a PEFT model; any other model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def unwrap_model(model: Any, recursive: bool = False) -> Any:
    """The model inside what wraps it: a compiled form, or data parallelism.

    Args:
        model: maybe wrapped.
        recursive: has no effect: parts of a model are never wrapped.
    """
    inner = getattr(model, "_orig_mod", getattr(model, "module", model))
    return model if inner is model or not isinstance(inner, nn.Module) else unwrap_model(inner)


def get_model_param_count(model: nn.Module, trainable_only: bool = False) -> int:
    """Number of the values of a model, or of those that are trained."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad or not trainable_only)
