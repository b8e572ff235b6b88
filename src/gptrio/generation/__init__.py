"""Text generation: options, score processors, stopping rules, streamers and decoding loops.

Public names can be imported from here as from `gptrio`; the older names of results are here only.
"""

from __future__ import annotations

import importlib
from typing import Any

_RESULTS = (
    "GenerateBeamDecoderOnlyOutput", "GenerateDecoderOnlyOutput", "GenerateOutput",
    "BeamSampleDecoderOnlyOutput", "BeamSearchDecoderOnlyOutput", "ContrastiveSearchDecoderOnlyOutput",
    "GreedySearchDecoderOnlyOutput", "SampleDecoderOnlyOutput", "compute_transition_scores",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """Find a public name where it is defined, on first use."""
    if name in _RESULTS:
        return getattr(importlib.import_module("gptrio.generation.outputs"), name)
    package = importlib.import_module("gptrio")
    if name.startswith("_") or not package._EXPORTS.get(name, "").startswith("gptrio.generation."):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(package, name)
