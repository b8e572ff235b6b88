"""A computation over fixed tensors, recorded once and replayed: one call in place of hundreds of kernel launches.

A recording repeats the addresses and the Python numbers of the time when it was made; what changes from replay to
replay must be in tensors. No operation in it may wait for a value on the device.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor

Computation = Callable[[], Tensor]

_WARM_UPS = 3  # runs before the capture, in which libraries allocate and choose algorithms, as torch advises
_one_at_a_time = threading.Lock()  # operations of another thread on the stream would be recorded too
_recording: ContextVar[bool] = ContextVar("gptrio_recording", default=False)


def is_recording() -> bool:
    """Whether this thread is in `record`, where nothing may be decided by a tensor's value."""
    return _recording.get()


def can_record(device: torch.device) -> bool:
    """Whether there is a recorder for computations on `device`."""
    return device.type in RECORDERS


def record(compute: Computation, device: torch.device) -> Computation:
    """Record what `compute` does on `device`.

    Args:
        compute: does the same each time it is called; it is called several times. The tensors that it uses and does not
            make itself must outlive the recording.
        device: where all its tensors are; see `can_record`.

    Returns:
        Does it again. All calls return one tensor, which the next call overwrites.

    Raises:
        RuntimeError: it does something that cannot be recorded.
    """
    token = _recording.set(True)
    try:
        return RECORDERS[device.type](compute, device)
    finally:
        _recording.reset(token)


def cuda_graph(compute: Computation, device: torch.device) -> Computation:
    """Record as a CUDA graph, whose memory lives as long as what is returned."""
    with _one_at_a_time, torch.cuda.device(device):
        side, current = _side_stream(device), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                compute()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):  # others may use the GPU now
            result = compute()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


# one for all recordings of a device: libraries keep a workspace for every stream that they have met
_side_stream: Callable[[torch.device], torch.cuda.Stream] = functools.cache(torch.cuda.Stream)
RECORDERS: dict[str, Callable[[Computation, torch.device], Computation]] = {"cuda": cuda_graph}
