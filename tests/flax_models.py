"""Tiny random Flax models, beside the reference's, and the comparison of their numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gptrio
from tests import sizes
from tests.sizes import SPECIAL_TOKENS

_TWO_LAYERS: dict[str, dict[str, Any]] = {  # each layer is compiled
    "GPT2": {"n_layer": 2},
    "GPTNeoX": {"num_hidden_layers": 2},
    "GPTNeo": {"num_layers": 2, "attention_types": [[["local", "global"], 1]]},
}
SIZES = {family: {**fields, **_TWO_LAYERS[family]} for family, fields in sizes.SIZES.items()}
LENGTH = 11
VOCABULARY = 61
WITHOUT_DROPOUT = {"FlaxGPT2LMHeadModel": dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)}


def flax_model(class_name: str, **config: Any) -> Any:
    """Our Flax model of a class such as "FlaxGPTNeoModel", with random parameters large enough that all matter."""
    cls = getattr(gptrio, class_name)
    family = next(name for name in SIZES if class_name.startswith(f"Flax{name}"))
    model = cls(cls.config_class(**{**SIZES[family], **SPECIAL_TOKENS, **config}), _do_init=False)
    return holding(model, random_params(model.params_shape_tree))


def flax_pair(class_name: str, **config: Any) -> tuple[Any, Any]:
    """The reference's Flax model and ours, with equal random parameters."""
    import transformers

    ours = flax_model(class_name, **config)
    cls = getattr(transformers, class_name)
    oracle = cls(cls.config_class(**{**ours.config.to_dict(), "transformers_version": None}), _do_init=False)
    return holding(oracle, ours.params), ours


def holding(model: Any, params: Any) -> Any:
    """A model that was built without parameters, with some: to draw its own would compile for seconds."""
    model._is_initialized = True
    model.params = params
    return model


def random_params(shapes: Any, scale: float = 0.15) -> Any:
    """Random parameters of given shapes, biases included; the scales of norms are near 1."""
    random = np.random.default_rng(0)

    def draw(path: Any, like: Any) -> Any:
        values = scale * random.standard_normal(like.shape) + (path[-1].key == "scale")
        return jnp.asarray(values, like.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def token_ids(rows: int = 2, length: int = LENGTH) -> np.ndarray[Any, Any]:
    """(rows, length) random ids, none of which is special."""
    return np.random.default_rng(0).integers(1, 59, (rows, length))


def padding(side: str, length: int = LENGTH) -> np.ndarray[Any, Any]:
    """(2, length) mask of a whole row and one of 4 tokens less, on a side."""
    mask = np.ones((2, length), np.int32)
    if side == "left":
        mask[1, :4] = 0
    elif side == "right":
        mask[1, -4:] = 0
    return mask


def positions_of(mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(B, T) positions that count real tokens only."""
    return np.maximum(mask.cumsum(-1) - 1, 0)


def assert_near(actual: Any, expected: Any, limit: float = 1e-5, name: str = "arrays") -> None:
    """Check that trees of arrays differ by at most `limit` of each expected array's largest value."""
    ours, theirs = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(ours) == len(theirs), f"{name}: {len(ours)} arrays instead of {len(theirs)}"
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert one.shape == other.shape, f"{name}[{i}]: shape {one.shape} instead of {other.shape}"
        difference = np.abs(one - other).max(initial=0) / (np.abs(other).max(initial=0) or 1)
        assert difference <= limit, f"{name}[{i}]: relative difference {difference:.2e}, allowed {limit:.0e}"
