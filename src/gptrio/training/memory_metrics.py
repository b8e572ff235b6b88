"""Memory that the stages of a run take, as `skip_memory_metrics=False` asks for, with the names of Transformers."""

from __future__ import annotations

import gc
import threading
from typing import Any

import torch

from gptrio.errors import import_optional
from gptrio.utils.installed import is_psutil_available

_INTERVAL = 0.001  # seconds between two looks at the memory


class MemoryMetrics:
    """Measures what a stage of a trainer ("init", "train", "eval", "test") leaves allocated, and what more it took.

    An evaluation within a training belongs to the training. Nothing is measured where it is not wanted, or without
    psutil.

    Args:
        is_wanted: whether to measure.
    """

    def __init__(self, is_wanted: bool) -> None:
        self.is_wanted = is_wanted and is_psutil_available()
        if self.is_wanted:
            self._process = import_optional("psutil", "figures of memory need psutil: pip install psutil").Process()
        self._stage: str | None = None
        self._found: dict[str, dict[str, dict[str, int]]] = {}
        self._is_init_told = False
        self._ended = threading.Event()

    def start(self, stage: str) -> None:
        """Begin to measure a stage, unless another one is being measured."""
        if not self.is_wanted or self._stage not in (None, stage):
            return
        self._ended.set()  # of a training that begins anew
        self._stage, self._ended = stage, threading.Event()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.empty_cache()
        self._before = self._peak = self._used()
        threading.Thread(target=self._watch, args=(self._ended,), daemon=True).start()

    def stop(self, stage: str, metrics: dict[str, Any] | None = None) -> None:
        """End a stage, and add what it and the making of the trainer took to metrics, in bytes."""
        if not self.is_wanted or self._stage != stage:
            return
        self._ended.set()
        gc.collect()
        now = self._used()
        peak = {**self._peak, **({"gpu": torch.cuda.max_memory_allocated()} if "gpu" in now else {})}
        self._found[stage] = {
            "before": self._before,
            "alloc": {kind: now[kind] - self._before[kind] for kind in now},
            "peaked": {kind: max(0, peak[kind] - now[kind]) for kind in now},
        }
        self._stage = None
        if metrics is not None:
            metrics.update(self._metrics(stage))

    def abandon(self) -> None:
        """Stop to measure, as the stage has failed."""
        self._ended.set()
        self._stage = None

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(_INTERVAL):
            self._peak = {kind: max(value, self._peak[kind]) for kind, value in self._used().items()}

    def _metrics(self, stage: str) -> dict[str, int]:
        is_first, self._is_init_told = not self._is_init_told, True
        metrics = {
            f"{name}_mem_{kind}_{what}_delta": value
            for name in (["init"] if is_first else []) + [stage]
            for what in ("alloc", "peaked")
            for kind, value in self._found[name][what].items()
        }
        if is_first:
            metrics |= {f"before_init_mem_{kind}": value for kind, value in self._found["init"]["before"].items()}
        return metrics

    def _used(self) -> dict[str, int]:
        """Bytes of this process, and of its tensors on a GPU."""
        used = {"cpu": int(self._process.memory_info().rss)}
        return {**used, "gpu": torch.cuda.memory_allocated()} if torch.cuda.is_available() else used
