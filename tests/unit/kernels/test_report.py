"""The report names a call for every kind of weight."""

from __future__ import annotations

import pytest

from gptrio.kernels import report


def test_every_kind_of_weight_is_told() -> None:
    assert set(report.kernel_report()) == {"float32", "bfloat16", "float16", "int8", "int4"}


def test_missing_means_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "can_pack_cached", lambda dtype: False)
    monkeypatch.setattr(report, "has_int8_products", lambda: False)
    monkeypatch.setattr(report, "one_row_range", lambda: 0)
    told = report.kernel_report()
    assert "cannot pack" in told["float32"] and "in float32" in told["bfloat16"]
    assert "no VNNI" in told["int8"] and "fbgemm" not in told["int8"]


@pytest.mark.parametrize("installed", [True, False])
def test_the_way_of_decoding_is_told(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    monkeypatch.setattr(report, "is_installed", lambda: installed)
    assert ("compiled" in report.decoding_report()) == installed
