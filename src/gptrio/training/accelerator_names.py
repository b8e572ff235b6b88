"""What code for accelerate's `Accelerator` asks of the accelerator of a trainer, by the names that it has there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gptrio.training.arrays import with_parts


class DistributedType(str, Enum):
    """How a run is divided; equal to accelerate's of the same name."""

    NO = "NO"
    MULTI_CPU = "MULTI_CPU"
    MULTI_GPU = "MULTI_GPU"
    FSDP = "FSDP"


class GradientState:
    """Whether gradients are shared after this batch, and which loader is being read.

    Attributes:
        sync_gradients: the batch is the last one of its update.
        plugin_kwargs: settings of `accumulate`; the trainer accumulates by itself.
        active: loaders that are being read, an inner one last.
    """

    sync_with_dataloader = True

    def __init__(self) -> None:
        self.sync_gradients = True
        self.plugin_kwargs: dict[str, Any] = {"num_steps": 1}
        self.active: list[Any] = []

    def _set_sync_gradients(self, sync_gradients: bool) -> None:
        self.sync_gradients = sync_gradients

    @property
    def num_steps(self) -> int:
        """Batches of an update that `accumulate` counts."""
        return int(self.plugin_kwargs["num_steps"])

    @property
    def active_dataloader(self) -> Any:
        """The loader that is being read, or None."""
        return self.active[-1] if self.active else None

    @property
    def in_dataloader(self) -> bool:
        """Whether a loader is being read."""
        return bool(self.active)

    @property
    def end_of_dataloader(self) -> bool:
        """Whether the last batch of that loader was given."""
        return bool(self.active) and bool(self.active[-1].end_of_dataloader)

    @property
    def remainder(self) -> int:
        """Rows in an incomplete last batch of that loader; -1 without one."""
        return int(self.active[-1].remainder) if self.active else -1


class AcceleratorNames:
    """The part of a trainer's accelerator that the trainer itself does not need.

    Attributes:
        gradient_state: see `GradientState`.
        scaler: of fp16, or None.
        non_blocking: tensors go to the device while the host goes on.
    """

    device: torch.device
    dtype: torch.dtype | None
    scaler: Any
    num_processes: int
    process_index: int
    local_process_index: int
    is_main_process: bool
    is_local_main_process: bool
    is_sharded: bool
    unwrap_model: Callable[..., Any]
    full_state_dict: Callable[..., Any]
    prepare: Callable[..., Any]
    wait_for_everyone: Callable[[], None]
    deepspeed_plugin = fsdp_plugin = torch_tp_plugin = parallelism_config = None
    non_blocking = False

    def __init__(self) -> None:
        self.gradient_state = GradientState()
        self._models: list[Any] = []
        self._counted = 0  # batches of `accumulate`

    @property
    def state(self) -> Any:
        """This object, which has what accelerate's `AcceleratorState` has."""
        return self

    @property
    def sync_gradients(self) -> bool:
        """Whether the batch is the last one of its update."""
        return self.gradient_state.sync_gradients

    @sync_gradients.setter
    def sync_gradients(self, sync_gradients: bool) -> None:
        self.gradient_state.sync_gradients = sync_gradients

    @property
    def gradient_accumulation_steps(self) -> int:
        """Batches of an update that `accumulate` counts; those of the trainer are in its arguments."""
        return self.gradient_state.num_steps

    @gradient_accumulation_steps.setter
    def gradient_accumulation_steps(self, steps: int) -> None:
        self.gradient_state.plugin_kwargs["num_steps"] = steps

    @property
    def distributed_type(self) -> DistributedType:
        """How the run is divided."""
        if self.num_processes == 1:
            return DistributedType.NO
        if self.is_sharded:
            return DistributedType.FSDP
        return DistributedType.MULTI_GPU if self.device.type == "cuda" else DistributedType.MULTI_CPU

    @property
    def use_distributed(self) -> bool:
        """Whether there are several processes."""
        return self.num_processes > 1

    @property
    def is_last_process(self) -> bool:
        """Whether this process has the highest number."""
        return self.process_index == self.num_processes - 1

    @property
    def mixed_precision(self) -> str:
        """ "no", "bf16" or "fp16"."""
        names = {torch.bfloat16: "bf16", torch.float16: "fp16"}
        return "no" if self.dtype is None else names[self.dtype]

    @property
    def native_amp(self) -> bool:
        """Whether matrix products have another format than the weights."""
        return self.dtype is not None

    @contextmanager
    def accumulate(self, *models: Any) -> Iterator[None]:
        """The context of a batch in a loop of one's own; every `gradient_accumulation_steps`-th one ends an update."""
        self._counted += 1
        self.sync_gradients = self._counted % self.gradient_accumulation_steps == 0
        yield

    def main_process_first(self) -> AbstractContextManager[None]:
        """The context of what rank 0 does before the others, such as filling a cache."""
        return self._first(self.is_main_process)

    def local_main_process_first(self) -> AbstractContextManager[None]:
        """The context of what the first process of each machine does before the others."""
        return self._first(self.is_local_main_process)

    @contextmanager
    def _first(self, is_first: bool) -> Iterator[None]:
        if not is_first:
            self.wait_for_everyone()
        yield
        if is_first:
            self.wait_for_everyone()

    @contextmanager
    def split_between_processes(self, inputs: Any, apply_padding: bool = False) -> Iterator[Any]:
        """This process's part of a list, tuple, tensor or a mapping of such; the first ones get the rest.

        Args:
            inputs: to be divided.
            apply_padding: repeat the last element of all, so that all processes have as many.
        """
        yield self._part(inputs, apply_padding) if self.num_processes > 1 else inputs

    def _part(self, inputs: Any, is_padded: bool) -> Any:
        if isinstance(inputs, Mapping):
            return with_parts(lambda value: self._part(value, is_padded), inputs)
        size, rest = divmod(len(inputs), self.num_processes)
        start = size * self.process_index + min(self.process_index, rest)
        count = size + (self.process_index < rest)
        part = inputs[start : start + count]
        if is_padded and rest and count == size:
            last = inputs[-1:]
            part = torch.cat([part, last]) if isinstance(part, Tensor) else part + last
        return part

    def on_main_process(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function on rank 0; nothing elsewhere."""
        return self._only(function, self.is_main_process)

    def on_local_main_process(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function on the first process of each machine; nothing elsewhere."""
        return self._only(function, self.is_local_main_process)

    def on_last_process(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function on the last process; nothing elsewhere."""
        return self._only(function, self.is_last_process)

    @staticmethod
    def _only(function: Callable[..., Any], acts: bool) -> Callable[..., Any]:
        return function if acts else lambda *args, **options: None

    def print(self, *values: Any, **options: Any) -> None:
        """Print on the first process of each machine."""
        if self.is_local_main_process:
            print(*values, **options)

    def save(self, obj: Any, f: str | Path, safe_serialization: bool = False) -> None:
        """Write an object by `torch.save`, or tensors by safetensors, on rank 0."""
        if not self.is_main_process:
            return
        if safe_serialization:
            from safetensors.torch import save_file

            save_file(obj, f, {"format": "pt"})
        else:
            torch.save(obj, f)

    def get_state_dict(self, model: Any, unwrap: bool = True) -> dict[str, Any]:
        """All parameters and buffers by name, whole."""
        inner: nn.Module = self.unwrap_model(model) if unwrap else model
        whole = self.full_state_dict(inner, keeps=True)
        return dict(inner.state_dict() if whole is None else whole)

    def prepare_data_loader(self, data_loader: Any, *args: Any, **options: Any) -> Any:
        """The loader with this rank's batches, on the device."""
        return self.prepare(data_loader)

    def prepare_optimizer(self, optimizer: Any, *args: Any, **options: Any) -> Any:
        """The optimizer as it is."""
        return optimizer

    def prepare_scheduler(self, scheduler: Any) -> Any:
        """The schedule as it is: the trainer takes its steps."""
        return scheduler

    def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
        """Limit every value of the gradients."""
        nn.utils.clip_grad_value_(parameters, clip_value)

    def free_memory(self, *objects: Any) -> list[Any]:
        """Forget the models that were prepared, and return None for each object, which the caller then forgets."""
        self._models.clear()
        self._counted = 0
        return [None for _ in objects]
