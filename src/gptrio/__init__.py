"""GPT-2, GPT-Neo and GPT-NeoX: one small, fast library that speaks the Transformers 4.56 API of these families.

Names are loaded on first use (PEP 562), so that `import gptrio` stays cheap and loads neither torch nor jax.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> module that defines it
_EXPORTS = {
    "GptrioError": "errors",
    "GptrioWarning": "errors",
}

__all__ = sorted([*_EXPORTS, "__version__"])  # noqa: PLE0605 - derived from the one table above


def __getattr__(name: str) -> Any:
    """Import the module behind a public name on first use."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'gptrio' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gptrio.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return list(__all__)
