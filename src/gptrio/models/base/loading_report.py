"""What loading reports of a checkpoint whose keys are not those of its model."""

from __future__ import annotations

import os

from gptrio.checkpoint.load import LoadReport
from gptrio.errors import warn


def warn_key_mismatch(report: LoadReport, class_name: str, name_or_path: str | os.PathLike[str] | None) -> None:
    """One warning that names what did not fit."""
    mismatched = [f"{key} {stored} instead of {expected}" for key, stored, expected in report.mismatched]
    parts = {
        "drawn at random, because the checkpoint lacks them": report.missing,
        "drawn at random, because their shapes differ": mismatched,
        "in the checkpoint but not in the model": report.unexpected,
    }
    clauses = [
        f"{len(keys)} {what}: {', '.join(keys[:8])}{', ...' * (len(keys) > 8)}" for what, keys in parts.items() if keys
    ]
    if clauses:
        where = f" from {os.fspath(name_or_path)}" if name_or_path else ""
        trained = "; train the model before you rely on it" if report.missing or mismatched else ""
        warn(f"{class_name}{where}: {'; '.join(clauses)}{trained}")


def loading_info(report: LoadReport) -> dict[str, list[str]]:
    """What `output_loading_info=True` gives: sorted names under the reference's keys."""
    return {
        "missing_keys": sorted(report.missing),
        "unexpected_keys": sorted(report.unexpected),
        "mismatched_keys": sorted(key for key, _, _ in report.mismatched),
        "error_msgs": [],
    }
