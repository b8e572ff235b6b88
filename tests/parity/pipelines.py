"""The same pipeline twice over one folder of a tiny model: Transformers' and ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

import gptrio
from gptrio.testing import byte_tokenizer
from tests.contract.families import FAMILIES, Family

TEXTS = ["It was a fine film.", "no", "Dull, and far too long!", "Why?", "a fine, fine cast", "is it?"]

families = pytest.mark.parametrize("family", FAMILIES, ids=str)


def save(folder: Path, family: Family, name: str = "lm", **config: Any) -> Path:
    """Write a tiny model with random weights, and a tokenizer of bytes."""
    family.build(name, **config).save_pretrained(folder)
    byte_tokenizer(model_max_length=64).save_pretrained(folder)
    return folder


def both(task: str, folder: Path, **arguments: Any) -> tuple[Any, Any]:
    """Transformers' pipeline with eager attention, and ours."""
    eager = {"attn_implementation": "eager"}
    theirs = transformers.pipeline(task, str(folder), device="cpu", model_kwargs=eager, **arguments)
    return theirs, gptrio.pipeline(task, folder, device="cpu", **arguments)


def assert_alike(ours: Any, theirs: Any, limit: float = 1e-5) -> None:
    """Check nested results: equal names, texts and lengths, and numbers within a limit."""
    if isinstance(theirs, (float, np.floating)):
        assert ours == pytest.approx(theirs, abs=limit, rel=limit)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            assert_alike(ours[name], value, limit)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_alike(one, other, limit)
    else:
        assert ours == theirs
