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


def _laplace(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * 2.0**0.5)))


def _relu_squared(x: Tensor) -> Tensor:
    return nn.functional.relu(x).square()


class GELUActivation(nn.GELU):
    """GELU by the error function (Hendrycks and Gimpel, 2016).

    Args:
        use_gelu_python: accepted; the numbers are the same.
    """

    def __init__(self, use_gelu_python: bool = False) -> None:
        super().__init__()

    def extra_repr(self) -> str:
        """Nothing: the class says it."""
        return ""


class PytorchGELUTanh(nn.GELU):
    """GELU's approximation by tanh; the classes below are the same function under other names."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def extra_repr(self) -> str:
        """Nothing: the class says it."""
        return ""


class NewGELUActivation(PytorchGELUTanh):
    """GELU's approximation by tanh, `gelu_new` of a configuration."""


class FastGELUActivation(PytorchGELUTanh):
    """GELU's approximation by tanh, `gelu_fast` of a configuration."""


class AccurateGELUActivation(PytorchGELUTanh):
    """GELU's approximation by tanh, `gelu_accurate` of a configuration."""


# classes whose forward is torch's GELU with their attribute `approximate`, so that kernels can compute it
GELUS = (
    nn.GELU,
    GELUActivation,
    PytorchGELUTanh,
    NewGELUActivation,
    FastGELUActivation,
    AccurateGELUActivation,
)


class QuickGELUActivation(nn.Module):
    """`x * sigmoid(1.702 * x)`, a coarse approximation of GELU."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function."""
        return input * torch.sigmoid(1.702 * input)


class ClassInstantier(dict[str, Any]):
    """Name -> a new module of that activation for each look, from a class or from (class, its arguments)."""

    def __getitem__(self, name: str) -> nn.Module:
        content = super().__getitem__(name)
        make, arguments = content if isinstance(content, tuple) else (content, {})
        return cast(nn.Module, make(**arguments))


ACT2CLS: dict[str, Any] = {
    "elu": nn.ELU,
    "gelu": GELUActivation,
    "gelu_10": partial(Elementwise, _clipped_gelu),
    "gelu_accurate": AccurateGELUActivation,
    "gelu_fast": FastGELUActivation,
    "gelu_new": NewGELUActivation,
    "gelu_python": (GELUActivation, {"use_gelu_python": True}),
    "gelu_pytorch_tanh": PytorchGELUTanh,
    "laplace": partial(Elementwise, _laplace),
    "leaky_relu": nn.LeakyReLU,
    "linear": nn.Identity,
    "mish": nn.Mish,
    "prelu": nn.PReLU,
    "quick_gelu": QuickGELUActivation,
    "relu": nn.ReLU,
    "relu2": partial(Elementwise, _relu_squared),
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}
ACT2FN = ClassInstantier(ACT2CLS)


def get_activation(name: str) -> nn.Module:
    """A new module of the activation `name`.

    Raises:
        UnknownNameError: no such name; the message lists the known ones.
    """
    if name not in ACT2FN:
        raise UnknownNameError(f"activation {name!r} is not known; use one of {', '.join(ACT2FN)}")
    return ACT2FN[name]


gelu, gelu_fast, gelu_new, gelu_python = (ACT2FN[name] for name in ("gelu", "gelu_fast", "gelu_new", "gelu_python"))
quick_gelu, silu, mish, linear_act = (ACT2FN[name] for name in ("quick_gelu", "silu", "mish", "linear"))
