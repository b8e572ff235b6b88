"""The device, the number formats and the copies of the model of a run in several processes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from gptrio.errors import import_optional
from gptrio.models.base.pretrained import PreTrainedModel
from gptrio.training import ranks
from gptrio.training.loaders import divided
from gptrio.training.parts import innermost
from gptrio.training.precision import SingleProcess


class ManyProcesses(SingleProcess):
    """What `Trainer` needs of accelerate's `Accelerator`, for a copy of the model in each process.

    accelerate sets the group of processes up; the rest is torch's. Its `Accelerator` is not used, as its loaders repeat
    rows to fill the last batches, read again what a resumed run has passed, and change a model's forward for bf16.

    Args:
        args: `TrainingArguments`.
        dtype: of matrix products; None is that of the weights.
    """

    def __init__(self, args: Any, dtype: torch.dtype | None = None) -> None:
        super().__init__(args.device, dtype)  # asking for the device sets the group up
        self.num_processes, self.process_index = ranks.world_size(), ranks.rank()
        self.local_process_index = args.local_process_index
        self.is_main_process, self.is_local_main_process = self.process_index == 0, self.local_process_index == 0
        given = {
            "find_unused_parameters": args.ddp_find_unused_parameters,
            "bucket_cap_mb": args.ddp_bucket_cap_mb,
            "broadcast_buffers": args.ddp_broadcast_buffers,
        }
        self._options = {name: value for name, value in given.items() if value is not None}

    def _divided(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        return divided(loader)

    def prepare_model(self, model: Any, evaluation_mode: bool = False) -> Any:
        """The model with gradients that are averaged over the processes; rank 0's weights go to all of them."""
        if evaluation_mode or isinstance(model, DistributedDataParallel):
            self._models.append(model)
            return model
        options = {"find_unused_parameters": _may_leave_out(self.unwrap_model(model)), **self._options}
        device_ids = [self.device] if self.device.type == "cuda" else None
        made = DistributedDataParallel(model, device_ids=device_ids, **options)
        self._models.append(made)
        return made

    def no_sync(self, model: Any) -> AbstractContextManager[Any]:
        """The context of a batch that is not the last of its update: gradients stay in their process."""
        context: AbstractContextManager[Any] = model.no_sync()
        return context

    def gather(self, tensor: Any, *args: Any, **options: Any) -> Any:
        """The rows of all processes, in the order of the ranks; see `ranks.gather_rows`."""
        return ranks.gather_rows(tensor)

    gather_for_metrics = gather

    def reduce(self, tensor: Tensor, reduction: str = "sum", scale: float = 1.0) -> Tensor:
        """The sum, or the "mean", over all processes."""
        return ranks.summed(tensor) * (scale / self.num_processes if reduction == "mean" else scale)

    def pad_across_processes(self, tensor: Any, *args: Any, **options: Any) -> Any:
        """The tensor as it is: `gather` pads it."""
        return tensor

    def wait_for_everyone(self) -> None:
        """Wait until all processes have come here."""
        dist.barrier()


def make_accelerator(args: Any) -> SingleProcess:
    """The device, number formats and processes of a run.

    Raises:
        MissingDependencyError: there are several processes, and accelerate is not installed.
    """
    made = _accelerator_of(args, torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else None)
    for name in ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler", "non_blocking"):
        setattr(made, name, getattr(args.accelerator_config, name))  # as accelerate's own has them
    return made


def _accelerator_of(args: Any, dtype: torch.dtype | None) -> SingleProcess:
    if args.world_size == 1:
        return SingleProcess(args.device, dtype)
    import_optional("accelerate", "several processes need accelerate; pip install 'gptrio[train]'")
    if args.fsdp:
        from gptrio.training.sharding import ShardedProcesses

        return ShardedProcesses(args, dtype)
    return ManyProcesses(args, dtype)


def _may_leave_out(model: Any) -> bool:
    """Whether a model may have parameters that a batch does not use, which costs a search in every batch."""
    inner = innermost(model)
    if getattr(model, "is_gradient_checkpointing", False):
        return False
    is_known = isinstance(inner, PreTrainedModel) and type(inner).__module__.startswith("gptrio.")
    return not is_known or "DoubleHeads" in type(inner).__name__ or getattr(inner.config, "add_cross_attention", False)
