"""The report names a kernel and a reason for every kind of weight."""

from __future__ import annotations

import pytest
import torch

from gptrio.kernels import report
from gptrio.kernels.native.library import Native


def test_every_kind_of_weight_is_told() -> None:
    told = report.kernel_report()
    assert set(told) == {"processor", "C kernels", "float32", "bfloat16", "float16", "int8", "int4"}
    assert f"{torch.get_num_threads()} threads" in told["processor"]


def test_reason_for_missing_kernels_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "native", lambda: Native(None, "no C compiler"))
    monkeypatch.setattr(report, "native_rows", lambda dtype: 0)
    told = report.kernel_report()
    assert told["C kernels"] == "not used: no C compiler"
    assert "C kernels" not in told["float32"] + told["int8"] + told["int4"]
