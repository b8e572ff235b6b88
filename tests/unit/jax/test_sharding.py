"""Parameters on many devices: the numbers of one device, memory, and errors for what does not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from jax.sharding import PartitionSpec as P

import gptrio
from gptrio.errors import InputError
from gptrio.jax.sharding import check_spec, partition_specs, placer, shard, shard_batch
from gptrio.testing import tiny_config
from tests.architecture.source import ROOT


def run(*arguments: object) -> str:
    """Run a check of `eight_devices`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-m", "tests.unit.jax.eight_devices", *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "names",
    [
        ["FlaxGPTNeoForCausalLM"],
        pytest.param(["FlaxGPT2LMHeadModel", "FlaxGPTNeoXForCausalLM"], marks=pytest.mark.long),
    ],
    ids="-".join,
)
def test_logits_and_a_training_step_equal_those_of_one_device(names: list[str]) -> None:
    run("equal", *names)


def test_a_load_divides_parameters_as_shard_does(tmp_path: Path) -> None:
    gptrio.GPTNeoForCausalLM(tiny_config("gpt_neo")).save_pretrained(tmp_path)
    run("load", tmp_path, "all")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_sharded_load_adds_little_more_memory_than_the_checkpoint(tmp_path: Path) -> None:
    config = tiny_config("gpt_neo", vocab_size=40_000, hidden_size=768)  # 180 MB
    gptrio.GPTNeoForCausalLM(config).save_pretrained(tmp_path)
    run("memory", tmp_path, 1.2)


# errors: a mesh need not have real devices to be refused


def mesh(**axes: int) -> Any:
    return SimpleNamespace(shape=axes, axis_names=tuple(axes))


@pytest.fixture(scope="module")
def model() -> Any:
    return gptrio.FlaxGPTNeoForCausalLM(tiny_config("gpt_neo"))  # 4 heads, 32 hidden units, 257 tokens


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"tensor": 3}, "'tensor' of the mesh has size 3.*4 attention heads.*size 1 or 2 or 4"),
        ({"model": 2}, "axis 'model'; name its axes 'data'.*'fsdp'.*'tensor'"),
        ({"fsdp": 7}, "'fsdp' of the mesh has size 7.*no dimension of transformer/.*divides the hidden size"),
    ],
    ids=str,
)
def test_a_mesh_that_does_not_fit(model: Any, axes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        partition_specs(model, mesh(**axes))


def test_a_vocabulary_that_does_not_divide_leaves_the_table_divided_by_hidden_units(model: Any) -> None:
    table = partition_specs(model, mesh(tensor=4, fsdp=2))["transformer"]["wte"]["embedding"]
    assert table == P(None, ("tensor", "fsdp"))
    config = tiny_config("gpt_neo", vocab_size=256)
    even = gptrio.FlaxGPTNeoForCausalLM(config, _do_init=False)
    assert partition_specs(even, mesh(tensor=4, fsdp=2))["transformer"]["wte"]["embedding"] == P("tensor", "fsdp")


def test_specs_that_do_not_fit(model: Any) -> None:
    with pytest.raises(InputError, match="has axis 'rows'; the mesh has \\['data'\\]"):
        check_spec("table", (4, 4), P("rows"), mesh(data=2))
    with pytest.raises(InputError, match=r"'data' of the mesh has size 3, which does not divide 4, .* of table"):
        check_spec("table", (4, 4), P("data"), mesh(data=3))
    with pytest.raises(InputError, match="fewer dimensions than its spec"):
        check_spec("bias", (4,), P(None, "data"), mesh(data=2))
    with pytest.raises(InputError, match="specs lack transformer/"):
        placer(model, mesh(data=1), {})


def test_rows_that_do_not_divide() -> None:
    with pytest.raises(InputError, match=r"'data' x 'fsdp' .* size 4, which does not divide 6, .* input_ids"):
        shard_batch({"input_ids": jax.numpy.ones((6, 3))}, mesh(data=2, fsdp=2))


def test_other_parameters_are_divided_and_the_models_stay(model: Any) -> None:
    one = jax.make_mesh((1,), ("fsdp",))
    before = model.params
    placed = shard(model, one, params=model.to_bf16(before))
    assert model.params is before
    assert placed["transformer"]["ln_f"]["scale"].dtype == jax.numpy.bfloat16
    shard(model, one)
    assert model.params["transformer"]["wte"]["embedding"].sharding.spec == P("fsdp", None)
