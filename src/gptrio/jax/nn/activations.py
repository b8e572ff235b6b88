"""Activation functions by their configuration names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from gptrio.errors import UnsupportedError

Activation = Callable[[Array], Array]


def _clipped_gelu(x: Array) -> Array:
    return jnp.clip(_GELU(x), -10, 10)


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _laplace(x: Array) -> Array:
    return 0.5 * (1.0 + jax.scipy.special.erf((x - 0.707107) / (0.282095 * 2.0**0.5)))


def _linear(x: Array) -> Array:
    return x


_GELU = partial(jax.nn.gelu, approximate=False)
_TANH_GELU = partial(jax.nn.gelu, approximate=True)

ACTIVATIONS: dict[str, Activation] = {
    "elu": jax.nn.elu,
    "gelu": _GELU,
    "gelu_10": _clipped_gelu,
    "gelu_accurate": _TANH_GELU,
    "gelu_fast": _TANH_GELU,
    "gelu_new": _TANH_GELU,
    "gelu_python": _GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "laplace": _laplace,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": _linear,
    "mish": jax.nn.mish,
    "quick_gelu": _quick_gelu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def activation(name: str) -> Activation:
    """The function of the activation `name`.

    Raises:
        UnsupportedError: no such name; the message lists the known ones.
    """
    if name not in ACTIVATIONS:
        raise UnsupportedError(f"activation {name!r} is not known; use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
