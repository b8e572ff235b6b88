"""The random generators that a run draws from: Python's, numpy's and torch's on every device."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def gather() -> dict[str, Any]:
    """The states of all generators: "python", "numpy" and "torch", and "cuda" and "mps" where they are."""
    version, numbers, gauss = random.getstate()
    states: dict[str, Any] = {
        "python": {"version": version, "numbers": np.array(numbers, np.int64), "gauss": gauss},
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore(states: Mapping[str, Any]) -> None:
    """Continue all generators from states of `gather`; those that are not among them go on as they are.

    Raises:
        ValueError, TypeError, RuntimeError: a state is malformed.
    """
    if "python" in states:
        python = states["python"]
        numbers = tuple(int(number) for number in python["numbers"])
        random.setstate((python["version"], numbers, python["gauss"]))
    if "numpy" in states:
        np.random.set_state(states["numpy"])
    if "torch" in states:
        torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
            torch.cuda.set_rng_state(state, device)
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])
