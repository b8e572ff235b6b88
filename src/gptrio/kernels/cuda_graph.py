"""A computation over fixed tensors, captured once and replayed: one call in place of hundreds of kernel launches.

A capture repeats the addresses and the Python numbers of the time when it was made; what changes from replay to
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
_one_at_a_time = threading.Lock()  # operations of another thread on the stream would be captured too
_capturing: ContextVar[bool] = ContextVar("gptrio_capturing", default=False)


def is_capturing() -> bool:
    """Whether this thread is in `capture`, where nothing may be decided by a tensor's value."""
    return _capturing.get()


def can_capture(device: torch.device) -> bool:
    """Whether computations on `device` can be captured."""
    return device.type in CAPTURE_BY_DEVICE


def capture(compute: Computation, device: torch.device) -> Computation:
    """Capture what `compute` does on `device`.

    Args:
        compute: does the same each time it is called; it is called several times. The tensors that it uses and does not
            make itself must outlive the capture.
        device: where all its tensors are; see `can_capture`.

    Returns:
        Does it again. All calls return one tensor, which the next call overwrites.

    Raises:
        RuntimeError: it does something that cannot be captured.
    """
    token = _capturing.set(True)
    try:
        return CAPTURE_BY_DEVICE[device.type](compute, device)
    finally:
        _capturing.reset(token)


def cuda_graph(compute: Computation, device: torch.device) -> Computation:
    """Capture as a CUDA graph, whose memory lives as long as what is returned."""
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


# one for all captures of a device: libraries keep a workspace for every stream that they have met
_side_stream: Callable[[torch.device], torch.cuda.Stream] = functools.cache(torch.cuda.Stream)
CAPTURE_BY_DEVICE: dict[str, Callable[[Computation, torch.device], Computation]] = {"cuda": cuda_graph}
