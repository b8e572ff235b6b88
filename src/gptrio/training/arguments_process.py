"""Where a run happens: device, processes, and which of them log and save."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from gptrio.errors import import_optional, warn
from gptrio.training.arguments_fields import LOG_LEVELS, ArgumentFields
from gptrio.training.enums import ParallelMode
from gptrio.utils import logging

if TYPE_CHECKING:
    import torch

_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # what torchrun and accelerate set for each process


class ProcessArguments(ArgumentFields):
    """Properties that follow from the machine and the launcher; torch is imported when the device is asked for."""

    framework: ClassVar[str] = "pt"

    @cached_property
    def distributed_state(self) -> Any:
        """accelerate's state of the processes, which sets up their group; None where there is one process.

        Raises:
            MissingDependencyError: there are several, and accelerate is not installed.
        """
        if self.world_size == 1:
            return None
        message = "training in several processes needs accelerate; install gptrio[accelerate]"
        accelerate = import_optional("accelerate", message)
        options = {} if self.ddp_backend is None else {"backend": self.ddp_backend}
        return accelerate.PartialState(cpu=self._is_cpu_asked, timeout=self.ddp_timeout_delta, **options)

    @property
    def _is_cpu_asked(self) -> bool:
        return self.use_cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "on", "t")

    @cached_property
    def _setup_devices(self) -> torch.device:
        state = self.distributed_state
        device: torch.device = _device_of_one_process(self._is_cpu_asked) if state is None else state.device
        self._n_gpu = int(device.type != "cpu")
        return device

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        return self._setup_devices

    @property
    def n_gpu(self) -> int:
        """GPUs of this process: 1, or 0 on a CPU. Several GPUs are used by as many processes."""
        _ = self._setup_devices
        return self._n_gpu

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return _launched("get_world_size", "WORLD_SIZE", 1)

    @property
    def process_index(self) -> int:
        """Number of this process among all."""
        return _launched("get_rank", "RANK", 0)

    @property
    def local_process_index(self) -> int:
        """Number of this process on its machine."""
        return int(os.environ["LOCAL_RANK"]) if _is_launched() else self.process_index

    @property
    def parallel_mode(self) -> ParallelMode:
        """Whether there are several processes."""
        return ParallelMode.DISTRIBUTED if self.world_size > 1 else ParallelMode.NOT_PARALLEL

    @property
    def train_batch_size(self) -> int:
        """Rows of a training batch of this process."""
        return (self.per_gpu_train_batch_size or self.per_device_train_batch_size) * max(1, self.n_gpu)

    @property
    def eval_batch_size(self) -> int:
        """Rows of an evaluation batch of this process."""
        return (self.per_gpu_eval_batch_size or self.per_device_eval_batch_size) * max(1, self.n_gpu)

    @property
    def ddp_timeout_delta(self) -> timedelta:
        """How long a process waits for the others."""
        return timedelta(seconds=self.ddp_timeout)

    @property
    def should_log(self) -> bool:
        """Whether this process logs."""
        return (self.local_process_index if self.log_on_each_node else self.process_index) == 0

    @property
    def should_save(self) -> bool:
        """Whether this process writes checkpoints."""
        return (self.local_process_index if self.save_on_each_node else self.process_index) == 0

    @property
    def place_model_on_device(self) -> bool:
        """Whether the trainer moves the model to the device; for subclasses."""
        return True

    def get_process_log_level(self) -> int:
        """Level of the log of this process: `log_level` where it logs, else `log_level_replica`."""
        level = LOG_LEVELS[self.log_level if self.should_log else self.log_level_replica]
        return logging.get_verbosity() if level == -1 else level

    @contextmanager
    def main_process_first(self, local: bool = True, desc: str = "work") -> Iterator[None]:
        """Let the first process run a block before the others do, such as one that fills a cache which all read.

        Args:
            local: the first process of each machine; else the first of all, for machines that share a disk.
            desc: what is done, for the log.
        """
        if self.world_size == 1:
            yield
            return
        _ = self._setup_devices
        import torch.distributed as dist

        is_first = (self.local_process_index if local else self.process_index) == 0
        try:
            if not is_first:
                logging.get_logger().debug("process %d waits for the first one: %s", self.process_index, desc)
                dist.barrier()
            yield
        finally:
            if is_first:
                dist.barrier()


def is_main_process(local_rank: int) -> bool:
    """Whether a process of this number is the first one of its machine; -1 stands for one process alone."""
    return local_rank in (-1, 0)


def _is_launched() -> bool:
    return all(name in os.environ for name in _LAUNCHED)


def _launched(function: str, variable: str, default: int) -> int:
    """What torch.distributed knows if it is set up, else what the launcher says."""
    dist: Any = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return int(getattr(dist, function)())
    return int(os.environ[variable]) if _is_launched() else default


def _device_of_one_process(is_cpu_asked: bool) -> torch.device:
    import torch

    if is_cpu_asked:
        return torch.device("cpu")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    if torch.xpu.is_available():
        return torch.device("xpu:0")
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count > 1:
        warn(
            f"{count} GPUs are visible, and one process uses one of them; start the script by "
            f"`torchrun --nproc_per_node {count}` for all, or set CUDA_VISIBLE_DEVICES"
        )
    torch.cuda.set_device(0)
    return torch.device("cuda:0")
