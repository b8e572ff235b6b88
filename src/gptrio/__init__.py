"""GPT-2, GPT-Neo and GPT-NeoX: one small, fast library that speaks the Transformers 4.56 API of these families.

Names are loaded on first use (PEP 562), so that `import gptrio` stays cheap and loads neither torch nor jax. The one
table of public names is the stub beside this file, `__init__.pyi`: type checkers and the run time read the same lines.
"""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

from gptrio import import_paths
from gptrio.memory import gc_disabled

__version__ = "0.1.0"

import_paths.install()


def _read_exports() -> dict[str, str]:
    """Public name -> module that defines it, from the stub's lines `from MODULE import NAME as NAME`."""
    stub = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    rows = re.findall(r"^from (\S+) import \(?\s*(\w+) as \2\b", stub, re.MULTILINE)
    return {name: module for module, name in rows}


_EXPORTS = _read_exports()

__all__ = sorted([*_EXPORTS, "__version__"])


def __getattr__(name: str) -> Any:
    """Import the module behind a public name on first use."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'gptrio' has no attribute {name!r}{_nearest(name)}")
    with gc_disabled():
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def _nearest(name: str) -> str:
    """The public names most like a misspelt one, as the end of an error's message."""
    if name.startswith("_"):
        return ""
    from difflib import get_close_matches

    by_lower = {known.lower(): known for known in __all__}
    found = [by_lower[match] for match in get_close_matches(name.lower(), by_lower, cutoff=0.75)]
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return list(__all__)


if os.environ.get("GPTRIO_VERBOSITY") or os.environ.get("TRANSFORMERS_VERBOSITY"):
    __getattr__("logging").get_verbosity()  # reads them
