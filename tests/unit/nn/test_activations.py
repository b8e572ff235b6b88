"""Activations against their formulas in Python's floating point."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from gptrio.errors import UnknownNameError
from gptrio.nn.activations import ACT2FN, get_activation


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def tanh_gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def elu(x: float) -> float:
    return x if x > 0 else math.expm1(x)


FORMULAS: dict[str, Callable[[float], float]] = {
    "elu": elu,
    "gelu": gelu,
    "gelu_10": lambda x: min(max(gelu(x), -10), 10),
    "gelu_accurate": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu_new": tanh_gelu,
    "gelu_python": gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "laplace": lambda x: 0.5 * (1 + math.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "linear": lambda x: x,
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "prelu": lambda x: x if x > 0 else 0.25 * x,
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
    "tanh": math.tanh,
}


@pytest.mark.parametrize("name", ACT2FN)
def test_formula(name: str) -> None:
    x = torch.linspace(-12, 12, 97)
    expected = torch.tensor([FORMULAS[name](value) for value in x.tolist()])
    torch.testing.assert_close(get_activation(name)(x), expected, rtol=1e-5, atol=1e-6)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="activation 'swoosh' is not known; use one of elu, gelu"):
        get_activation("swoosh")
    with pytest.raises(KeyError):  # as in Transformers
        get_activation("swoosh")
