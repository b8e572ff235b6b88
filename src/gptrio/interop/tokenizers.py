"""Tokenizers: the other library's class made from the files of the first, then given its backend."""

from __future__ import annotations

import tempfile
from typing import Any

import gptrio
from gptrio.errors import UnsupportedError
from gptrio.tokenization.base import PreTrainedTokenizerBase


def tokenizer_to_transformers(tokenizer: PreTrainedTokenizerBase, library: Any) -> Any:
    """See `gptrio.to_transformers`.

    Args:
        tokenizer: a tokenizer of this package.
        library: the module `transformers`.
    """
    return _converted(tokenizer, "gptrio", library)


def tokenizer_from_transformers(tokenizer: Any) -> PreTrainedTokenizerBase:
    """See `gptrio.from_transformers`."""
    ours: PreTrainedTokenizerBase = _converted(tokenizer, "transformers", gptrio)
    return ours


def _converted(tokenizer: Any, package: str, library: Any) -> Any:
    names = [base.__name__ for base in type(tokenizer).__mro__ if base.__module__.partition(".")[0] == package]
    name = next((name for name in names if hasattr(library, name)), None)
    if name is None:
        raise UnsupportedError(f"{library.__name__} has no class like {type(tokenizer).__name__}")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        other = getattr(library, name).from_pretrained(folder)
    other.name_or_path = other.init_kwargs["name_or_path"] = tokenizer.name_or_path
    if tokenizer.is_fast:
        other._tokenizer = tokenizer._tokenizer
    return other
