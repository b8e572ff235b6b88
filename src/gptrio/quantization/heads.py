"""The heads of a model, as quantizers ask for them; modules of other libraries have none."""

from __future__ import annotations

from typing import Any

from torch import nn


def output_head(model: Any) -> nn.Module | None:
    """The language-model head, or None."""
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def tied_head(model: Any) -> nn.Module | None:
    """The language-model head, if its weight is the token table's; else None."""
    is_tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    return output_head(model) if is_tied else None


def full_precision_modules(model: Any) -> tuple[str, ...]:
    """Names of modules that stay as they are, whatever the method: small heads, trained anew."""
    return tuple(getattr(model, "full_precision_modules", ()))
