"""Capture: what is told while it lasts, and the order of the calls that make a CUDA graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from gptrio.kernels import cuda_graph as graphs

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


def test_only_on_a_gpu_is_there_something_to_capture_with() -> None:
    assert graphs.can_capture(CUDA)
    assert not graphs.can_capture(CPU)


def test_capture_is_known_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def compute() -> Tensor:
        seen.append(graphs.is_capturing())
        return torch.ones(1)

    def capturer(compute: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        compute()
        return compute

    monkeypatch.setitem(graphs.CAPTURE_BY_DEVICE, "cpu", capturer)
    replay = graphs.capture(compute, CPU)
    replay()
    assert seen == [True, False]


def test_capture_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Tensor:
        raise RuntimeError("no memory")

    monkeypatch.setitem(graphs.CAPTURE_BY_DEVICE, "cpu", lambda compute, device: compute)
    with pytest.raises(RuntimeError, match="no memory"):
        graphs.capture(fails, CPU)()
    assert not graphs.is_capturing()


class Stream:
    """A stream that writes down what it waits for."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


def test_a_cuda_graph_is_captured_after_a_warm_up_on_a_side_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    side, current = Stream("side", log), Stream("current", log)
    known = inspect.signature(torch.cuda.graph).parameters

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    @contextmanager
    def told(what: str) -> Iterator[None]:
        log.append(f"in {what}")
        yield
        log.append("out")

    def capture(graph: Graph, **options: Any) -> Any:
        assert type(graph) is Graph
        assert options == {"stream": side, "capture_error_mode": "thread_local"}
        assert options.keys() <= known.keys()
        return told("capture")

    monkeypatch.setattr(graphs, "_side_stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "device", lambda device: told(str(device)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: told(stream.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    result = torch.ones(1)

    def compute() -> Tensor:
        log.append("compute")
        return result

    replay = graphs.capture(compute, CUDA)
    assert replay() is replay() is result
    warm_up = ["side waits for current", "in side", "compute", "compute", "compute", "out", "current waits for side"]
    assert log == ["in cuda:1", *warm_up, "in capture", "compute", "out", "out", "replay", "replay"]
