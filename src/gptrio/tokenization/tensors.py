"""Converts between Python lists and tensors of torch, numpy and jax, which are imported only when needed."""

from __future__ import annotations

import sys
from typing import Any

from gptrio.errors import TokenizationError, UnsupportedError, import_optional


def to_tensor(value: Any, kind: str, name: str) -> Any:
    """Turn (nested) lists of integers into a tensor; tensors are returned unchanged.

    Args:
        value: numbers, or lists of them.
        kind: "pt", "np" or "jax".
        name: what the value is called in an error.

    Raises:
        TokenizationError: lists of different lengths (numpy gets an array of objects instead), or other values.
        UnsupportedError: an unknown kind.
    """
    kind = getattr(kind, "value", kind)
    if kind == "np":
        return _to_numpy(value)
    if kind not in ("pt", "jax"):
        raise UnsupportedError(f"return_tensors is {kind!r}; expected 'pt', 'np' or 'jax'")
    try:
        return _to_torch(value) if kind == "pt" else _to_jax(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise TokenizationError(
            f"cannot make a tensor of {name!r}: {error}. Rows of different lengths need padding=True and perhaps "
            "truncation=True; nested lists need is_split_into_words=True"
        ) from error


def _to_torch(value: Any) -> Any:
    torch = import_optional("torch", "return_tensors='pt' needs torch: pip install torch")
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, list) and value and hasattr(value[0], "__array__"):
        value = _to_numpy(value)  # torch converts lists of arrays slowly
    return torch.tensor(value)


def _to_jax(value: Any) -> Any:
    return import_optional("jax.numpy", "return_tensors='jax' needs jax: pip install 'gptrio[jax]'").array(value)


def _to_numpy(value: Any) -> Any:
    import numpy as np

    ragged = isinstance(value, (list, tuple)) and len({len(v) if hasattr(v, "__len__") else -1 for v in value}) > 1
    return np.array([np.asarray(row) for row in value], dtype=object) if ragged else np.asarray(value)


def to_plain(value: Any) -> Any:
    """Turn tensors and arrays, also inside lists and mappings, into Python numbers and lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value] if value and not isinstance(value[0], int) else list(value)
    return value


def kind_of(value: Any) -> str | None:
    """Return "pt", "np" or "jax" for a tensor, None for anything else, without loading those libraries."""
    for kind, module, name in (("pt", "torch", "Tensor"), ("np", "numpy", "ndarray"), ("jax", "jax", "Array")):
        if module in sys.modules and isinstance(value, getattr(sys.modules[module], name)):
            return kind
    return None
