"""Parameters on many devices: the numbers of one device, memory, and errors for what does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


def run(*checks: list[str]) -> dict[str, str]:
    """The errors of checks of `eight_devices`, by their names."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-m", "tests.unit.jax.eight_devices", json.dumps(checks)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    errors: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return errors


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of all checks, in one process; that of the memory comes first."""
    large, small = (str(tmp_path_factory.mktemp(name)) for name in ("large", "small"))
    config = tiny_config("gpt_neo", vocab_size=40_000, hidden_size=768)  # 180 MB
    gptrio.GPTNeoForCausalLM(config).save_pretrained(large)
    gptrio.GPTNeoForCausalLM(tiny_config("gpt_neo")).save_pretrained(small)
    memory = [["memory", large, "1.2"]] if sys.platform == "linux" else []  # reads /proc
    return run(*memory, ["load", small, "all"], ["equal", "FlaxGPTNeoForCausalLM"])


@pytest.mark.parametrize(
    "check",
    [
        "equal",  # logits and a training step are those of one device
        "load",  # a load divides parameters as `shard` does
        "memory",  # a load adds little more memory than the checkpoint
    ],
)
def test_models_on_eight_devices(errors: dict[str, str], check: str) -> None:
    assert check not in errors, errors[check]


@pytest.mark.long
def test_logits_and_a_training_step_of_other_families_equal_those_of_one_device() -> None:
    assert run(["equal", "FlaxGPT2LMHeadModel", "FlaxGPTNeoXForCausalLM"]) == {}


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
