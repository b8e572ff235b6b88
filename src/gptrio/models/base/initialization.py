"""Initialisation of new weights, each of which is drawn once only.

Modules are drawn in Transformers' order and as often as there, so that one seed gives the same weights in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gptrio.models.base.checkpointing import CheckpointingMixin
from gptrio.models.base.pruning import prune
from gptrio.nn.linear import LINEARS

if TYPE_CHECKING:
    from gptrio.models.base.pretrained import PreTrainedModel

_IS_SKIPPED = ContextVar("is_skipped", default=False)  # nothing is drawn now
_MARK = "_is_hf_initialized"  # on modules with weights drawn or loaded; other libraries set and read it too


class InitialisingMixin(CheckpointingMixin):
    """Draws the weights of a model's parts; subclasses override `_init_weights`."""

    base_model: Any

    def post_init(self) -> None:
        """Prune, initialise and tie what the class has built; the last line of a class's `__init__`."""
        self.init_weights()
        self.obey_checkpointing_key()

    def init_weights(self) -> None:
        """Prune the heads that the configuration lists, draw weights that are not initialised yet, and tie embeddings.

        Weights that were drawn or loaded before stay; `model.apply(model._init_weights)` draws all of them anew.
        """
        if self.config.pruned_heads:
            prune(self.base_model, self.config.pruned_heads)
        if not next(self.parameters()).is_meta and not _IS_SKIPPED.get():
            self.initialize_weights()
        self.tie_weights()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draw the weights of every part that has none yet, each by the `_init_weights` of the model it belongs to."""
        _visit(self, self._initialize_weights)

    def _initialize_weights(self, module: nn.Module) -> None:
        """Draw the weights of one module, unless they were drawn or loaded before."""
        if not getattr(module, _MARK, False):
            self._init_weights(module)
            mark_initialised(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw the weights of one module: normal, zero biases, unit norms (GPT-2; Radford et al., 2019)."""
        std = getattr(self.config, "initializer_range", 0.02)
        if isinstance(module, LINEARS):
            module.weight.normal_(0.0, std)
            gain = getattr(module, "init_gain", 1.0)
            if gain != 1.0:
                module.weight.normal_(0.0, std * gain)  # a second draw, as Transformers makes it
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0.0, std)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()


@contextmanager
def no_init_weights() -> Iterator[None]:
    """Draw no weights of what this thread builds in the block; their values are what memory holds."""
    token = _IS_SKIPPED.set(True)
    try:
        with _Undrawn():
            yield
    finally:
        _IS_SKIPPED.reset(token)


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as they are that `torch.nn.init` would draw."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of torch, unless it is one of `torch.nn.init`."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def mark_initialised(module: nn.Module) -> None:
    """Note that the weights of a module are drawn or loaded."""
    setattr(module, _MARK, True)


def initialize_missing(model: PreTrainedModel, device_of: Callable[[str], torch.device]) -> None:
    """Give storage and new values to parameters that a checkpoint lacks, and move buffers to their device.

    Args:
        model: its missing parameters are on the meta device.
        device_of: the device of a key of the state dict.
    """
    missing: dict[nn.Module, dict[str, nn.Parameter]] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for leaf, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[leaf] = buffer.to(device_of(prefix + leaf))
        for leaf, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                data = torch.empty_like(parameter, device=device_of(prefix + leaf))
                missing.setdefault(module, {})[leaf] = nn.Parameter(data, parameter.requires_grad)
    for module, parameters in missing.items():
        loaded = {leaf: p for leaf, p in module._parameters.items() if p is not None and leaf not in parameters}
        for leaf, parameter in loaded.items():  # `_init_weights` overwrites these stand-ins, not what was loaded
            module._parameters[leaf] = nn.Parameter(torch.empty_like(parameter), parameter.requires_grad)
        module._parameters.update(parameters)
        model._init_weights(module)
        module._parameters.update(loaded)
    model.apply(mark_initialised)
    model.tie_weights()


def _visit(module: nn.Module, initialise: Callable[[nn.Module], None]) -> None:
    """Call on a module after all below it; a model inside the model initialises its own modules."""
    for child in module.children():
        _visit(child, child._initialize_weights if isinstance(child, InitialisingMixin) else initialise)
    initialise(module)
