"""Parameters and batches on many devices, by `jax.sharding` alone.

The names of a mesh's axes say what each axis divides:

- "data": the rows of a batch; every device has all parameters,
- "fsdp": the rows of a batch, and every parameter too (fully sharded),
- "tensor": the heads, the inner width of the MLPs and the vocabulary (tensor parallel, Shoeybi et al., 2019).

A mesh may have any of them, in any order. XLA adds the communication.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gptrio.errors import InputError
from gptrio.jax.models.base.pretrained import FlaxPreTrainedModel, Params, ParamsPath

AXES = {"data": "rows of a batch", "fsdp": "rows and parameters", "tensor": "heads, MLPs and the vocabulary"}
_BATCH_AXES = ("data", "fsdp")


def partition_specs(model: FlaxPreTrainedModel, mesh: Mesh) -> Params:
    """How each parameter is divided among the devices of a mesh: a tree of `PartitionSpec` in the form of `params`.

    The table of tokens is divided by tokens where "tensor" divides their number, else by hidden units.

    Args:
        model: need not hold parameters.
        mesh: its axes are named as in this module's docstring.

    Raises:
        InputError: an axis has another name, "tensor" does not divide the heads, or "fsdp" no dimension of a matrix.
    """
    _check_axes(mesh)
    _check_heads(model, mesh)
    return unflatten_dict({path: _spec(model, mesh, path, shape.shape) for path, shape in model.flat_shapes.items()})


def shard(model: FlaxPreTrainedModel, mesh: Mesh, specs: Params | None = None, params: Params | None = None) -> Params:
    """Divide parameters among the devices of a mesh.

    Args:
        model: its own parameters are divided, unless `params` are given.
        mesh: of devices.
        specs: a tree of `PartitionSpec`; `partition_specs(model, mesh)` if None.
        params: other parameters than the model's, which then stay as they are.

    Returns:
        The divided parameters.

    Raises:
        InputError: the mesh or the specs do not fit the model.
    """
    place = placer(model, mesh, specs)
    flat = flatten_dict(model.params if params is None else params)
    placed = unflatten_dict({path: place(path, value) for path, value in flat.items()})
    if params is None:
        model.params = placed
    return placed


def placer(
    model: FlaxPreTrainedModel, mesh: Mesh, specs: Params | None = None, after_part: Callable[[], None] | None = None
) -> Callable[[ParamsPath, Any], Array]:
    """A function that puts a parameter, given its path and an array, on the devices of a mesh.

    A numpy array, which may be a view of a file, goes there part by part: no device gets more of it than its part.

    Args:
        model, mesh, specs: as for `shard`; so are the errors.
        after_part: called when a part has been copied, to let go of the memory that reading it took.
    """
    flat = flatten_dict(partition_specs(model, mesh) if specs is None else specs)
    for path, shape in model.flat_shapes.items():
        if path not in flat:
            raise InputError(f"specs lack {'/'.join(path)}; start from partition_specs(model, mesh)")
        check_spec("/".join(path), shape.shape, flat[path], mesh)
    mesh = without_axis_types(mesh)

    def place(path: ParamsPath, array: Any) -> Array:
        sharding = NamedSharding(mesh, flat[path])
        if not isinstance(array, np.ndarray):
            return jax.device_put(array, sharding)
        parts = []
        for device, index in sharding.addressable_devices_indices_map(array.shape).items():
            parts.append(jax.device_put(np.ascontiguousarray(array[index]), device).block_until_ready())
            if after_part is not None:
                after_part()
        return jax.make_array_from_single_device_arrays(array.shape, sharding, parts)

    return place


def shard_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Array]:
    """Divide the rows of arrays (B, ...) among the devices of a mesh, by its axes "data" and "fsdp".

    Raises:
        InputError: the axes do not divide B.
    """
    axes = tuple(name for name in _BATCH_AXES if name in mesh.shape)
    spec = P(axes) if axes else P()
    for name, array in batch.items():
        check_spec(name, np.shape(array), spec, mesh)
    sharding = NamedSharding(without_axis_types(mesh), spec)
    return {name: jax.device_put(array, sharding) for name, array in batch.items()}


def check_spec(name: str, shape: tuple[int, ...], spec: P, mesh: Mesh) -> None:
    """Raise InputError for a spec with an unknown axis, too many dimensions, or a size that does not divide."""
    if len(spec) > len(shape):
        raise InputError(f"{name} of shape {shape} has fewer dimensions than its spec {spec}")
    for size, axes in zip(shape, spec, strict=False):
        names = (axes,) if isinstance(axes, str) else tuple(axes or ())
        for axis in names:
            if axis not in mesh.shape:
                raise InputError(f"the spec {spec} of {name} has axis {axis!r}; the mesh has {list(mesh.shape)}")
        parts = math.prod(mesh.shape[axis] for axis in names)
        if size % parts:
            raise InputError(
                f"{' x '.join(map(repr, names))} of the mesh has size {parts}, which does not divide {size}, a "
                f"dimension of {name} {shape}; use a size that does"
            )


def without_axis_types(mesh: Mesh) -> Mesh:
    """The same mesh, in which XLA chooses how intermediate arrays are divided, whatever the mesh says of that."""
    return Mesh(mesh.devices, mesh.axis_names)


def _check_axes(mesh: Mesh) -> None:
    for name in mesh.axis_names:
        if name not in AXES:
            known = ", ".join(f"{axis!r} (divides {what})" for axis, what in AXES.items())
            raise InputError(f"the mesh has an axis {name!r}; name its axes {known}, or pass specs of your own")


def _check_heads(model: FlaxPreTrainedModel, mesh: Mesh) -> None:
    size, heads = mesh.shape.get("tensor", 1), model.config.num_attention_heads
    if heads % size:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0]
        raise InputError(
            f"axis 'tensor' of the mesh has size {size}, which does not divide the {heads} attention heads; "
            f"give it size {' or '.join(map(str, fitting))}, and the other devices to 'data' or 'fsdp'"
        )


def _spec(model: FlaxPreTrainedModel, mesh: Mesh, path: ParamsPath, shape: tuple[int, ...]) -> P:
    axes: list[tuple[str, ...]] = [()] * len(shape)
    if "tensor" in mesh.shape:
        divided = _tensor_dimension(model, path, shape, mesh.shape["tensor"])
        if divided is not None:
            axes[divided] = ("tensor",)
    if "fsdp" in mesh.shape and len(shape) > 1:
        axes[_fsdp_dimension(path, shape, axes, mesh)] += ("fsdp",)
    return P(*(names[0] if len(names) == 1 else names or None for names in axes))


def _tensor_dimension(model: FlaxPreTrainedModel, path: ParamsPath, shape: tuple[int, ...], size: int) -> int | None:
    """The dimension of a parameter that tensor parallelism divides; None if every device has all of it."""
    names, (layer, leaf) = model.weight_names, path[-2:]
    if layer in (names.token_table, names.output):
        tokens = 0 if layer == names.token_table else 1
        return tokens if shape[tokens] % size == 0 else 1 - tokens
    if layer in names.split_outputs:
        return 0 if leaf == "bias" or names.has_conv1d else 1
    if layer in names.split_inputs and leaf == "kernel":
        return 1 if names.has_conv1d else 0
    return None


def _fsdp_dimension(path: ParamsPath, shape: tuple[int, ...], axes: list[tuple[str, ...]], mesh: Mesh) -> int:
    """The largest dimension that a fully sharded axis can divide, if possible not the one that `axes` divide."""
    size = mesh.shape["fsdp"]
    taken = [math.prod(mesh.shape[name] for name in names) for names in axes]
    lengths = [length // parts for length, parts in zip(shape, taken, strict=True)]
    fitting = [i for i, length in enumerate(lengths) if length % size == 0]
    if not fitting:
        raise InputError(
            f"axis 'fsdp' of the mesh has size {size}, which divides no dimension of {'/'.join(path)} {shape}; use "
            "a size that divides the hidden size, and give the other devices to 'data' or 'tensor'"
        )
    return max(fitting, key=lambda i: (not axes[i], lengths[i]))
