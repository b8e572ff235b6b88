"""Loading a model makes objects that stay; looking for garbage among them takes longer than the loading."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collection() -> Iterator[None]:
    """Have Python not look for garbage meanwhile: a full search goes through all that was ever imported, torch too."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
