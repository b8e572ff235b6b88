"""What tests run in a process of its own with eight devices: `python -m tests.unit.jax.eight_devices CHECKS`.

Each check, of a list in JSON of their names and arguments, raises an error where something is wrong; what is printed
last is an object in JSON of the errors by the names.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import numpy as np
import optax

import gptrio
from gptrio.jax.sharding import partition_specs, shard
from gptrio.jax.training import init_train_state, make_train_step
from tests.flax_models import WITHOUT_DROPOUT, assert_near, flax_model, token_ids

MESHES = {"2x4": {"data": 2, "tensor": 4}, "fsdp": {"fsdp": 8}, "all": {"data": 2, "fsdp": 2, "tensor": 2}}


def mesh_of(name: str) -> Any:
    """A mesh of all eight devices."""
    axes = MESHES[name]
    return jax.make_mesh(tuple(axes.values()), tuple(axes))


def logits_and_step(model: Any, accumulate: int) -> tuple[Any, Any]:
    """Logits, and the loss, the gradients' norm and the parameters after one step of training."""
    optimizer = optax.sgd(0.1, momentum=0.9)  # linear in the gradients: Adam makes much of tiny differences
    batch = {"input_ids": token_ids(8), "attention_mask": np.ones((8, 11), np.int32)}
    batch["attention_mask"][3:, 7:] = 0
    logits = model(**batch).logits
    state = init_train_state(model, optimizer)
    state, metrics = make_train_step(model, optimizer, state, accumulate)(state, batch)
    return (logits, metrics, state.params, state.opt_state), state


def check_equal(*class_names: str) -> None:
    """Logits and one step of training on meshes are those of one device, and the parameters are divided."""
    for class_name in class_names:
        model = flax_model(class_name, **WITHOUT_DROPOUT.get(class_name, {}))  # 4 heads, 32 hidden units
        expected, _ = logits_and_step(model, accumulate=1)
        names = ("all", "fsdp") if class_name == "FlaxGPTNeoForCausalLM" else ("2x4", "fsdp")
        for mesh in map(mesh_of, names):
            shard(model, mesh)
            if {"fsdp", "tensor"} <= set(mesh.shape):
                _check_refuses_single_rows(model)
            actual, state = logits_and_step(model, accumulate=1 if "tensor" in mesh.shape else 2)
            assert_near(actual, expected, 3e-6, class_name)
            check_division(state, mesh)


def check_division(state: Any, mesh: Any) -> None:
    """Each device holds little more than its part of the parameters, and the optimizer's state is on all devices."""
    held = sum(value.addressable_shards[0].data.nbytes for value in jax.tree.leaves(state.params))
    whole = sum(value.nbytes for value in jax.tree.leaves(state.params))
    parts = mesh.size // mesh.shape.get("data", 1)
    assert held < 1.5 * whole / parts, f"a device holds {held} of {whole} bytes, with {parts} parts"
    for trace in jax.tree.leaves(state.opt_state):
        assert len(trace.sharding.device_set) == mesh.size


def _check_refuses_single_rows(model: Any) -> None:
    optimizer = optax.sgd(0.1)
    try:
        state = init_train_state(model, optimizer)
        make_train_step(model, optimizer, state, accumulate=2)(state, {"input_ids": token_ids(8)})
    except gptrio.UnsupportedError:
        return
    raise AssertionError("one row on each device was accepted, for which XLA's gradients are wrong")


def check_load(folder: str, mesh_name: str) -> None:
    """A sharded load has the values and the divisions that `shard` gives, also with specs, and for drawn parameters."""
    cls, mesh = gptrio.FlaxGPTNeoForCausalLM, mesh_of(mesh_name)
    whole = cls.from_pretrained(folder)
    loaded = cls.from_pretrained(folder, mesh=mesh)
    shard(whole, mesh)
    assert_near(loaded.params, whole.params, 0)
    specs = partition_specs(whole, mesh)
    loaded_too, params = cls.from_pretrained(folder, mesh=mesh, specs=specs, _do_init=False)
    del loaded_too
    for tree in (whole.params, params):
        same = jax.tree.map(lambda one, other: one.sharding == other.sharding, loaded.params, tree)
        assert all(jax.tree.leaves(same)), same


def check_memory(folder: str, limit: str) -> None:
    """The peak of the memory that a fully sharded load adds, devices' included, in files' sizes."""
    size = os.path.getsize(os.path.join(folder, "model.safetensors"))
    mesh = mesh_of("fsdp")
    gptrio.FlaxGPTNeoForCausalLM(gptrio.GPTNeoConfig.from_pretrained(folder), _do_init=False)
    before = _memory("VmRSS")
    model = gptrio.FlaxGPTNeoForCausalLM.from_pretrained(folder, mesh=mesh)
    jax.block_until_ready(model.params)
    added = (_memory("VmHWM") - before) / size
    print(f"{added:.3f} of {size} bytes")
    assert added <= float(limit), f"the load added {added:.2f} times the checkpoint of {size} bytes"


def _memory(name: str) -> int:
    """Bytes of an entry of this process's status."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


if __name__ == "__main__":
    errors = {}
    for check, *arguments in json.loads(sys.argv[1]):
        try:
            globals()[f"check_{check}"](*arguments)
        except Exception:
            errors[check] = traceback.format_exc()
    print(json.dumps(errors))
