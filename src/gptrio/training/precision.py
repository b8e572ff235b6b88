"""The device and the number formats of a run in one process."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gptrio.errors import OptionError
from gptrio.training.accelerator_names import AcceleratorNames
from gptrio.training.arrays import moved
from gptrio.training.loaders import prepared
from gptrio.training.parts import unwrap_model


class SingleProcess(AcceleratorNames):
    """What `Trainer` needs of accelerate's `Accelerator`, for a run in one process, which works without accelerate.

    Weights and the optimizer stay in float32; with bf16 or fp16, matrix products are computed in it (autocast).

    Args:
        device: of the run.
        dtype: of matrix products; None is that of the weights.

    Raises:
        OptionError: fp16 on a processor.
    """

    is_sharded = False
    num_processes, process_index, local_process_index = 1, 0, 0
    is_main_process = is_local_main_process = True

    def __init__(self, device: torch.device, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if dtype == torch.float16 and device.type == "cpu":
            raise OptionError("fp16=True needs a GPU; use bf16=True on a processor")
        self.device, self.dtype = device, dtype
        self.scaler = torch.amp.GradScaler(device.type) if dtype == torch.float16 else None
        self.optimizer_step_was_skipped = False

    def prepare(self, *objects: Any) -> Any:
        """The objects as a run needs them: loaders with batches on the device, modules by `prepare_model`."""
        made = tuple(self._prepared(each) for each in objects)
        return made[0] if len(made) == 1 else made

    def _prepared(self, each: Any) -> Any:
        if isinstance(each, DataLoader):
            return prepared(self._divided(each), self)
        return self.prepare_model(each) if isinstance(each, nn.Module) else each

    def _divided(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        return loader

    def prepare_model(self, model: Any, evaluation_mode: bool = False) -> Any:
        """The model as it is."""
        self._models.append(model)
        return model

    def place(self, batch: Any) -> Any:
        """A batch on the device of the run."""
        return batch if self.device.type == "cpu" else moved(batch, self.device, self.non_blocking)

    def shard(self, model: Any) -> None:
        """Leave the parameters whole."""

    def full_state_dict(self, model: Any, keeps: bool) -> Any:
        """None, as the model has whole tensors itself."""
        return None

    def unwrap_model(self, model: Any, **options: Any) -> Any:
        """The model inside what wraps it: a compiled form, or data parallelism."""
        return unwrap_model(model)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which a model and its loss are computed."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def no_sync(self, model: Any) -> AbstractContextManager[Any]:
        """Nothing to leave out, as there are no other processes."""
        return nullcontext()

    def backward(self, loss: Tensor, **options: Any) -> None:
        """Add the gradients of a loss; with fp16 they are scaled up, so that small ones do not become zero."""
        scaled: Any = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward(**options)

    def clip_grad_norm_(
        self, parameters: Iterable[Tensor], max_norm: float, norm_type: float = 2.0, optimizer: Any = None
    ) -> Tensor:
        """Shrink the gradients to a norm and return the norm that they had."""
        if self.scaler is not None and optimizer is not None:
            self.scaler.unscale_(optimizer)
        return nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    def step(self, optimizer: Any) -> None:
        """Take the optimizer's step; with fp16, not if a gradient is infinite, and the scale is adapted."""
        if self.scaler is None:
            optimizer.step()
            return
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        self.optimizer_step_was_skipped = self.scaler.get_scale() < before

    def gather(self, tensor: Any, *args: Any, **options: Any) -> Any:
        """The tensors of all processes: those of this one."""
        return tensor

    gather_for_metrics = reduce = pad_across_processes = gather

    def wait_for_everyone(self) -> None:
        """Return, as nobody else is there."""
