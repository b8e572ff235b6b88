"""The names that Flax models give to their parameters, and those of PyTorch for the same. Loads neither.

A Flax checkpoint calls a parameter by its path, `transformer/h/0/ln_1/scale` (with dots in safetensors). The last part
says what it is: the scale of a norm, a table, or the kernel of a linear layer, the transpose of PyTorch's weight.
"""

from __future__ import annotations

from collections.abc import Iterable

_WEIGHTS = ("kernel", "scale", "embedding")  # all "weight" in PyTorch


def stored_names(keys: Iterable[str]) -> dict[str, str]:
    """PyTorch's name -> name in the files; the same for a checkpoint that is not of a Flax model."""
    keys = list(keys)
    if not is_flax(keys):
        return {key: key for key in keys}
    return {torch_name(key): key for key in keys}


def is_flax(keys: Iterable[str]) -> bool:
    """Whether names are those of a Flax model's parameters."""
    leaves = {_leaf(key) for key in keys}
    return bool(leaves & set(_WEIGHTS)) and "weight" not in leaves


def torch_name(key: str) -> str:
    """PyTorch's name of a parameter of a Flax model, whose path has "/" or "." between its parts."""
    parts = key.replace("/", ".").split(".")
    return ".".join([*parts[:-1], "weight" if parts[-1] in _WEIGHTS else parts[-1]])


def is_transposed(key: str) -> bool:
    """Whether a parameter of a Flax model has rows and columns exchanged, compared to PyTorch's."""
    return _leaf(key) == "kernel"


def _leaf(key: str) -> str:
    return key.replace("/", ".").rpartition(".")[2]
