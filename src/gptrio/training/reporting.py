"""Callbacks that report logs to TensorBoard, trackio, wandb or a CSV file; each imports its package when it is used."""

from __future__ import annotations

from typing import Any

from gptrio.errors import UnsupportedError, nearest
from gptrio.utils.installed import is_installed

_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",)}
REPORTERS = (*_PACKAGES, "csv")


def get_available_reporting_integrations() -> list[str]:
    """Names of the places to report to whose package is installed: what `report_to="all"` means."""
    return [name for name, packages in _PACKAGES.items() if any(map(is_installed, packages))]


def resolve_reporters(report_to: Any) -> list[str]:
    """A list of names for the argument `report_to`; None and "all" are those that are installed, "none" is no place.

    Raises:
        UnsupportedError: a name for which there is no callback here.
    """
    names = ["all"] if report_to is None else [report_to] if isinstance(report_to, str) else list(report_to)
    if names == ["all"]:
        return get_available_reporting_integrations()
    if names == ["none"]:
        return []
    for name in names:
        if name not in REPORTERS:
            hint = nearest(str(name), REPORTERS) or "pass a TrainerCallback of your own in callbacks=[...]"
            raise UnsupportedError(f"report_to={name!r} is not one of {', '.join(REPORTERS)}; {hint}")
    return names
