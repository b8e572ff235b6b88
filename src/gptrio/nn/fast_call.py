"""Modules whose call runs their forward directly inside `skip_hook_dispatch`.

Calling an `nn.Module` searches for hooks and compiled forms. A decoding step of a small model calls dozens of modules,
and this search then takes as long as the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.utils._device import DeviceContext

from gptrio.kernels.cpu_decode import Reason
from gptrio.kernels.recompute import remember

_OWN_PACKAGES = ("gptrio.", "torch.nn.")
_CALLED = ("forward", "__call__", "_call_impl")  # what a call of a module runs
_hook_dispatch: ContextVar[str | None] = ContextVar("gptrio_hook_dispatch", default="the model runs outside generate")


@contextmanager
def skip_hook_dispatch(unless: str | None = None) -> Iterator[None]:
    """Run forwards directly, in this thread, without a search for hooks, unless there is a reason against it."""
    token = _hook_dispatch.set(unless)
    try:
        yield
    finally:
        _hook_dispatch.reset(token)


@contextmanager
def for_the_caller() -> Iterator[None]:
    """Run the caller's code inside `generate` as the reference does: without gradients, and with hooks."""
    with torch.inference_mode(False), torch.no_grad(), skip_hook_dispatch(unless="the caller's code runs"):
        yield


def dispatch_reason() -> str | None:
    """Why modules look for hooks now; None if they run their forward directly."""
    return "torch compiles the call" if is_dynamo_compiling() else _hook_dispatch.get()


def is_dispatch_skipped() -> bool:
    """Whether modules run their forward directly now."""
    return not is_dynamo_compiling() and _hook_dispatch.get() is None


def hook_reason(model: nn.Module) -> Reason | None:
    """Why a call of some module of `model` is not just the forward of its class; None if each one is.

    What may: hooks (forward or backward, of a module or of all modules), a compiled form, a forward set on an instance
    (by a wrapper, `torch.compile` or accelerate) or on a class of this package or of torch, and modes that watch every
    operation or function of torch, such as flop counters.
    Everything that skips or fuses calls of modules decides by this function.
    """
    if _is_watched_globally():
        return Reason("hooks of all modules or a mode of torch see every call")
    for module in model.modules():
        if _has_own(module):
            return Reason(f"a {type(module).__name__} has hooks, a compiled form or a forward of its own")
    altered = next(filter(_is_altered, {type(module) for module in model.modules()}), None)
    return None if altered is None else Reason(f"the forward of {altered.__name__} was replaced")


def has_own_classes_only(model: nn.Module, *others: str) -> bool:
    """Whether all modules of `model` are of this package's classes and torch's, or of `others`, such as "peft.".

    Modules of other packages may store their inputs, for a backward pass or to write to them.
    """
    return all(type(module).__module__.startswith((*_OWN_PACKAGES, *others)) for module in model.modules())


def is_watched(*modules: nn.Module | None) -> bool:
    """Whether one of these modules has hooks, or another forward than that of its class."""
    if is_dynamo_compiling() or _hook_dispatch.get() is None:
        return False
    known = [module for module in modules if module is not None]
    return _is_watched_globally() or any(_has_own(module) or _is_altered(type(module)) for module in known)


def has_package_forward(module: Any) -> bool:
    """Whether the forward of the module's class is this package's, not one of a subclass made elsewhere."""
    return is_written_in(type(module).forward, "gptrio.")


def is_written_in(function: Any, homes: str | tuple[str, ...]) -> bool:
    """Whether a function was written in modules whose names start so, whatever name a wrapper has copied."""
    return str(getattr(function, "__globals__", {}).get("__name__", "")).startswith(homes)


def _is_altered(kind: type) -> bool:
    """Whether what runs when a class of this package or of torch is called was written elsewhere."""
    ours = kind.__module__.startswith(_OWN_PACKAGES)
    return ours and not all(is_written_in(getattr(kind, name), _OWN_PACKAGES) for name in _CALLED)


def _is_watched_by_functions() -> bool:
    """Whether a mode sees every function of torch, other than the one that sets the default device."""
    return any(
        type(torch._C._get_function_stack_at(i)) is not DeviceContext
        for i in range(torch._C._len_torch_function_stack())
    )


def _is_watched_globally() -> bool:
    if _is_altered(nn.Module) or _is_watched_by_functions():
        return True
    hooks = nn.modules.module
    return bool(
        hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
        or torch._C._len_torch_dispatch_stack()
    )


def _has_own(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl
        or "forward" in module.__dict__
    )


class FastCallModule(nn.Module):
    """A module that `skip_hook_dispatch` makes cheap to call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward, with hooks unless there are none."""
        if not is_dynamo_compiling() and _hook_dispatch.get() is None:
            return self.forward(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Find a part or parameter; everything else by torch's own search, which takes longer."""
        own = self.__dict__
        if name in own.get("_modules", ()):
            return own["_modules"][name]
        if name in own.get("_parameters", ()):
            return own["_parameters"][name]
        return super().__getattr__(name)


class LayerNorm(FastCallModule, nn.LayerNorm):
    """`nn.LayerNorm` that is cheap to call."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last axis of (..., C)."""
        out = torch.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        return remember(out, self._normalized, input, self.weight, self.bias)

    def _normalized(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class Embedding(FastCallModule, nn.Embedding):
    """`nn.Embedding` that is cheap to call."""


class Dropout(FastCallModule, nn.Dropout):
    """`nn.Dropout` that is cheap to call."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop values in training; the input itself otherwise."""
        return super().forward(input) if self.training else input
