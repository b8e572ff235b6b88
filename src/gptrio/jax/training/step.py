"""A jitted training step for models that predict the next token.

Precision is the model's: parameters, gradients and the optimizer's state are float32, and `dtype=jnp.bfloat16` of the
model makes the products bfloat16. `model.enable_gradient_checkpointing()` trades time for memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from gptrio.errors import InputError, OptionError, UnsupportedError
from gptrio.jax.models.base import inputs
from gptrio.jax.models.base.pretrained import FlaxCausalLM, Params
from gptrio.jax.nn.losses import IGNORE, next_token_loss
from gptrio.jax.sharding import shard_batch

Batch = Mapping[str, Any]
Step = Callable[["TrainState", Batch], tuple["TrainState", dict[str, Array]]]
_KEYS = ("input_ids", "attention_mask", "position_ids", "labels")


@struct.dataclass
class TrainState:
    """All that a training run needs to go on, apart from its data.

    Attributes:
        step: () number of updates so far.
        params: float32 parameters.
        opt_state: the optimizer's state.
        key: random key of dropout; each step derives its own from it and from `step`.
    """

    step: Array
    params: Params
    opt_state: Any
    key: Array


def init_train_state(
    model: FlaxCausalLM, optimizer: optax.GradientTransformation, params: Params | None = None, seed: int = 0
) -> TrainState:
    """The state before the first step; its arrays are divided among devices as the parameters are.

    Args:
        model: need not hold parameters.
        optimizer: of optax.
        params: to begin with, which the first step may overwrite; a copy of the model's if None.
        seed: of dropout.

    Raises:
        OptionError: the model computes in float16, whose gradients vanish.
    """
    if model.dtype == jnp.float16:
        raise OptionError(
            f"{type(model).__name__} computes in float16, in which small gradients become zero; use dtype=jnp.bfloat16"
        )
    if params is None:
        params = jax.tree.map(jnp.copy, model.params)
    params = model.to_fp32(params)
    shardings = jax.tree.map(lambda value: value.sharding, params)
    everywhere = _everywhere(jax.tree.leaves(shardings)[0])
    of_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        shardings,
        transform_non_params=lambda _: everywhere,
    )
    opt_state = jax.jit(optimizer.init, out_shardings=of_state)(params)
    step, key = jax.device_put((jnp.zeros((), jnp.int32), jax.random.PRNGKey(seed)), everywhere)
    return TrainState(step, params, opt_state, key)


def make_train_step(
    model: FlaxCausalLM, optimizer: optax.GradientTransformation, state: TrainState, accumulate: int = 1
) -> Step:
    """A function that makes one update: `state, metrics = step(state, batch)`.

    The state that it is given is used up: its buffers hold the new one. A batch has arrays (B, T): "input_ids", and
    optionally "attention_mask", "position_ids" and "labels" (-100 does not count; by default the ids, without padding).
    Metrics are "loss" (mean over the labels of the whole batch), "grad_norm" and "tokens", the number of labels. On a
    mesh, the rows are divided by its axes "data" and "fsdp".

    Args:
        model: need not hold parameters.
        optimizer: that of the state.
        state: of `init_train_state`, or restored.
        accumulate: compute the gradients of a batch in so many parts, one after the other; B is a multiple of it.

    Raises:
        OptionError: `accumulate` is less than 1. The function raises InputError for a batch that does not fit, and
            UnsupportedError for one row on each device of a mesh with both "fsdp" and "tensor".
    """
    if accumulate < 1:
        raise OptionError(f"accumulate={accumulate} is less than 1; 1 computes a batch as a whole")

    def update(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        loss, gradients, tokens = loss_and_gradients(model, state.params, batch, key, accumulate)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients), "tokens": tokens}
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    shardings = jax.tree.map(lambda value: value.sharding, state)
    mesh = getattr(jax.tree.leaves(shardings)[0], "mesh", None)
    jitted = jax.jit(update, donate_argnums=0, out_shardings=(shardings, None))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        arrays = _as_arrays(batch, model, accumulate)
        if mesh is not None:
            _check_rows(len(arrays["input_ids"]) // accumulate, mesh)
        return jitted(state, arrays if mesh is None else shard_batch(arrays, mesh))

    return step


def loss_and_gradients(
    model: FlaxCausalLM, params: Params, batch: dict[str, Array], key: Array, accumulate: int = 1
) -> tuple[Array, Params, Array]:
    """The mean loss over all labels of a batch, its gradients, and the number of labels.

    Args:
        model, accumulate: see `make_train_step`.
        params: of the model.
        batch: arrays (B, T), labels included.
        key: of dropout.
    """
    tokens = (batch["labels"][:, 1:] != IGNORE).sum()

    def loss(params: Params, part: dict[str, Array], key: Array) -> Array:
        ids, mask, positions = (part.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
        logits = model(ids, mask, positions, params=params, dropout_rng=key, train=True).logits
        return next_token_loss(logits, part["labels"], tokens)

    if accumulate == 1:
        value, gradients = jax.value_and_grad(loss)(params, batch, key)
        return value, gradients, tokens

    def add(total: tuple[Array, Params], part: tuple[dict[str, Array], Array]) -> tuple[tuple[Array, Params], None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(params, *part)), None

    parts = jax.tree.map(lambda array: _in_parts(array, accumulate), batch)
    nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    (value, gradients), _ = jax.lax.scan(add, nothing, (parts, jax.random.split(key, accumulate)))
    return value, gradients, tokens


def _check_rows(rows: int, mesh: Any) -> None:
    """Raise UnsupportedError where jax 0.10.2 gives wrong gradients of the tables and of the first block."""
    devices = mesh.shape.get("data", 1) * mesh.shape.get("fsdp", 1)
    if {"fsdp", "tensor"} <= set(mesh.axis_names) and rows <= devices:
        raise UnsupportedError(
            f"{rows} rows at once on a mesh with both 'fsdp' and 'tensor' are one for each device, for which XLA's "
            f"gradients are wrong; pass at least {2 * devices} for each part of a batch, or use one of the two axes"
        )


def _in_parts(array: Array, parts: int) -> Array:
    """(B, T) to (parts, B / parts, T), so that each device has rows of every part and none has to move."""
    return array.reshape(-1, parts, array.shape[1]).swapaxes(0, 1)


def _as_arrays(batch: Batch, model: FlaxCausalLM, accumulate: int) -> dict[str, Array]:
    unknown = sorted(set(batch) - set(_KEYS))
    if unknown or "input_ids" not in batch:
        raise InputError(f"a batch has {', '.join(batch) or 'nothing'}; expected input_ids, and perhaps {_KEYS[1:]}")
    ids = inputs.as_ids(batch["input_ids"])
    inputs.check_ids(batch["input_ids"], model.config)
    rows = ids.shape[0]
    if rows % accumulate:
        raise InputError(f"a batch of {rows} rows cannot be computed in accumulate={accumulate} parts of equal size")
    arrays = {name: jnp.asarray(value, jnp.int32) for name, value in batch.items() if value is not None}
    for name, value in arrays.items():
        if value.shape != ids.shape:
            raise InputError(f"{name} has shape {value.shape}; input_ids have {ids.shape}")
    if "labels" not in arrays:
        mask = arrays.get("attention_mask")
        arrays["labels"] = ids if mask is None else jnp.where(mask != 0, ids, IGNORE)
    return arrays


def _everywhere(sharding: Sharding) -> Sharding:
    """That of an array which all devices of another sharding have whole."""
    return NamedSharding(sharding.mesh, P()) if isinstance(sharding, NamedSharding) else sharding
