"""Activation functions by their configuration names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from gptrio.errors import UnknownNameError


class Elementwise(nn.Module):
    """A function of one tensor as a module without parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        """Keep `function`, which maps a tensor to one of the same shape."""
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)


def _clipped_gelu(x: Tensor) -> Tensor:
    return nn.functional.gelu(x).clip(-10, 10)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _laplace(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * 2.0**0.5)))


def _relu_squared(x: Tensor) -> Tensor:
    return nn.functional.relu(x).square()


_TANH_GELU = partial(nn.GELU, approximate="tanh")


class _Makers(dict[str, Any]):
    """Name -> a new module of that activation for each look."""

    def __getitem__(self, name: str) -> nn.Module:
        return cast(nn.Module, super().__getitem__(name)())


ACT2FN = _Makers(
    {
        "elu": nn.ELU,
        "gelu": nn.GELU,
        "gelu_10": partial(Elementwise, _clipped_gelu),
        "gelu_accurate": _TANH_GELU,
        "gelu_fast": _TANH_GELU,
        "gelu_new": _TANH_GELU,
        "gelu_python": nn.GELU,
        "gelu_pytorch_tanh": _TANH_GELU,
        "laplace": partial(Elementwise, _laplace),
        "leaky_relu": nn.LeakyReLU,
        "linear": nn.Identity,
        "mish": nn.Mish,
        "prelu": nn.PReLU,
        "quick_gelu": partial(Elementwise, _quick_gelu),
        "relu": nn.ReLU,
        "relu2": partial(Elementwise, _relu_squared),
        "relu6": nn.ReLU6,
        "selu": nn.SELU,
        "sigmoid": nn.Sigmoid,
        "silu": nn.SiLU,
        "swish": nn.SiLU,
        "tanh": nn.Tanh,
    }
)


def get_activation(name: str) -> nn.Module:
    """A new module of the activation `name`.

    Raises:
        UnknownNameError: no such name; the message lists the known ones.
    """
    if name not in ACT2FN:
        raise UnknownNameError(f"activation {name!r} is not known; use one of {', '.join(ACT2FN)}")
    return ACT2FN[name]
