"""Rotary tables and activations of the Flax models against those of the PyTorch models."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gptrio.config.rotary import RotarySettings
from gptrio.errors import UnsupportedError
from gptrio.jax.nn.activations import ACTIVATIONS, activation
from gptrio.jax.nn.rotary import rotary_tables, rotate
from gptrio.nn.activations import get_activation as torch_activation
from gptrio.nn.rotary import RotaryEmbedding
from gptrio.nn.rotary import rotate as torch_rotate
from tests.flax_models import assert_near

FACTORS = {"short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.5, 2.0, 3.0, 4.0]}
LLAMA = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
SCALINGS: list[dict[str, Any]] = [
    {},
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "dynamic", "factor": 3.0},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.5, "truncate": False, "beta_fast": 4},
    {"rope_type": "longrope", "factor": 4.0, **FACTORS},
    {"rope_type": "longrope", "attention_factor": 1.2, **FACTORS},
    {"rope_type": "llama3", "factor": 8.0, **LLAMA},
]


@pytest.mark.parametrize("length", [10, 40])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_tables_and_rotation(scaling: dict[str, Any], length: int) -> None:
    settings = RotarySettings(8, 10000.0, 16, scaling)
    positions = np.stack([np.arange(length), np.maximum(np.arange(length) - 3, 0)])
    x = np.random.default_rng(0).normal(size=(2, 3, length, 12)).astype("f4")
    cos, sin = RotaryEmbedding(settings)(torch.ones(1), torch.tensor(positions))
    tables = rotary_tables(settings, jnp.asarray(positions), jnp.float32)
    assert_near(tables, (cos[:, None, :, :4].numpy(), sin[:, None, :, :4].numpy()), name="tables")
    expected = torch_rotate(torch.tensor(x)[:, :, :, None], (cos[:, None, :, None], sin[:, None, :, None]))
    assert_near(rotate(jnp.asarray(x), tables), expected[:, :, :, 0].numpy(), name="rotation")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    x = np.linspace(-12, 12, 101, dtype="f4")
    assert_near(activation(name)(jnp.asarray(x)), torch_activation(name)(torch.tensor(x)).numpy())


def test_an_unknown_activation_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match="activation 'wave' is not known; use one of elu, gelu"):
        activation("wave")
