"""Modules that cost one Python call inside `lean_calls`, where torch's own call machinery has nothing to do.

Calling an `nn.Module` looks for hooks and compiled forms. A decoding step of a small model calls dozens of modules, and
this search then takes as long as the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

_lean: ContextVar[bool] = ContextVar("gptrio_lean_calls", default=False)


@contextmanager
def lean_calls(model: nn.Module | None) -> Iterator[None]:
    """Run forwards directly, in this thread, if `model` is given and has no hooks and no compiled form."""
    token = _lean.set(model is not None and is_plain(model))
    try:
        yield
    finally:
        _lean.reset(token)


def is_lean() -> bool:
    """Whether modules run their forward directly now."""
    return _lean.get()


def is_plain(model: nn.Module) -> bool:
    """Whether `model` has no hooks and no compiled form."""
    shared = nn.modules.module
    if shared._global_forward_hooks or shared._global_forward_pre_hooks:
        return False
    return not any(m._forward_hooks or m._forward_pre_hooks or m._compiled_call_impl for m in model.modules())


class LeanModule(nn.Module):
    """A module that `lean_calls` makes cheap to call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward, with hooks unless there are none."""
        if not is_dynamo_compiling() and _lean.get():
            return self.forward(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Find a part or parameter; torch's own search, which takes longer, is for all the rest."""
        own = self.__dict__
        if name in own.get("_modules", ()):
            return own["_modules"][name]
        if name in own.get("_parameters", ()):
            return own["_parameters"][name]
        return super().__getattr__(name)


class LayerNorm(LeanModule, nn.LayerNorm):
    """`nn.LayerNorm` that is cheap to call."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last axis of (..., C)."""
        return torch.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class Embedding(LeanModule, nn.Embedding):
    """`nn.Embedding` that is cheap to call."""


class Dropout(LeanModule, nn.Dropout):
    """`nn.Dropout` that is cheap to call."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop values in training; the input itself otherwise."""
        return super().forward(input) if self.training else input
