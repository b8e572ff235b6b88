"""The training step: loss and gradients of the PyTorch models, accumulation, precision, and resuming after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax.traverse_util import flatten_dict

import gptrio
from gptrio.checkpoint.flax_names import torch_name
from gptrio.errors import CheckpointError, CheckpointFormatError, InputError, OptionError, TokenIdError
from gptrio.jax.nn.losses import next_token_loss
from gptrio.jax.training import TrainCheckpoints, init_train_state, make_train_step
from gptrio.jax.training.manifest import MANIFEST
from gptrio.jax.training.step import loss_and_gradients
from tests.architecture.source import ROOT
from tests.cases import first
from tests.flax_models import WITHOUT_DROPOUT, assert_near, flax_model, holding, padding, positions_of, token_ids

LANGUAGE_MODELS = ["FlaxGPTNeoForCausalLM", "FlaxGPT2LMHeadModel", "FlaxGPTNeoXForCausalLM"]
KEY = jax.random.PRNGKey(0)


def a_batch(side: str = "right") -> dict[str, Any]:
    """Two rows, one of them padded, with labels that ignore the padding and two tokens more."""
    ids, mask = token_ids(), padding(side)
    labels = np.where(mask == 1, ids, -100)
    labels[0, 2:4] = -100
    arrays = {"input_ids": ids, "attention_mask": mask, "position_ids": positions_of(mask), "labels": labels}
    return {name: jnp.asarray(array, jnp.int32) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def model() -> Any:
    return flax_model("FlaxGPTNeoForCausalLM")


@pytest.mark.parametrize("class_name", LANGUAGE_MODELS)
def test_loss_and_gradients_equal_those_of_pytorch(class_name: str, tmp_path: Path) -> None:
    ours, batch = flax_model(class_name, **WITHOUT_DROPOUT.get(class_name, {})), a_batch()
    ours.save_pretrained(tmp_path, safe_serialization=True)
    theirs = getattr(gptrio, class_name.removeprefix("Flax")).from_pretrained(tmp_path)
    expected = theirs(**{name: torch.from_numpy(np.array(array)).long() for name, array in batch.items()}).loss
    expected.backward()
    loss, gradients, tokens = jax.jit(lambda params: loss_and_gradients(ours, params, batch, KEY))(ours.params)
    assert_near(loss, expected.item(), 1e-6)
    assert int(tokens) == int((np.asarray(batch["labels"])[:, 1:] != -100).sum())
    of_torch = dict(theirs.named_parameters())
    for name, gradient in flatten_dict(gradients, sep="/").items():
        other = of_torch[torch_name(name)].grad.numpy()
        is_exchanged = name.endswith("kernel")
        assert_near(gradient, other.T if is_exchanged else other, 1e-5, name)


def test_the_loss_ignores_and_refuses_labels() -> None:
    logits = jax.random.normal(KEY, (1, 4, 5))
    labels = jnp.array([[0, 1, -100, 4]])
    expected = -jax.nn.log_softmax(logits)[0, jnp.array([0, 2]), jnp.array([1, 4])]
    assert_near(next_token_loss(logits, labels), expected.mean(), 1e-6)
    assert_near(next_token_loss(logits, labels, num_items_in_batch=8), expected.sum() / 8, 1e-6)
    for wrong in (5, -1):
        assert jnp.isnan(next_token_loss(logits, labels.at[0, 1].set(wrong)))
    gradient = jax.grad(lambda x: next_token_loss(x, labels))(logits)
    assert jnp.isfinite(gradient).all()
    assert not gradient[0, jnp.array([1, 3])].any()


@pytest.mark.parametrize("checkpointing", first([True, False]))
def test_accumulation_and_rematerialisation_change_nothing(model: Any, checkpointing: bool) -> None:
    batch = a_batch()
    expected = jax.jit(lambda params: loss_and_gradients(model, params, batch, KEY))(model.params)
    other = flax_model("FlaxGPTNeoForCausalLM")
    if checkpointing:
        other.enable_gradient_checkpointing()
    parts = jax.jit(lambda params: loss_and_gradients(other, params, batch, KEY, accumulate=2))(model.params)
    assert_near(parts, expected, 1e-5)


def train(model: Any, steps: int = 3, **batch: Any) -> tuple[Any, list[float]]:
    optimizer = optax.adamw(3e-3)
    state = init_train_state(model, optimizer)
    step, losses = make_train_step(model, optimizer, state), []
    for _ in range(steps):
        state, metrics = step(state, batch or a_batch())
        losses.append(float(metrics["loss"]))
    return state, losses


def test_a_step_lowers_the_loss_uses_up_its_state_and_spares_the_model(model: Any) -> None:
    before = jax.tree.map(np.array, model.params)
    optimizer = optax.adamw(3e-3)
    state = init_train_state(model, optimizer)
    after, metrics = make_train_step(model, optimizer, state)(state, a_batch())
    assert state.params["transformer"]["wte"]["embedding"].is_deleted()
    assert (int(after.step), int(metrics["tokens"])) == (1, int((a_batch()["labels"][:, 1:] != -100).sum()))
    assert_near(model.params, before, 0)
    _, losses = train(model, 4)
    assert losses == sorted(losses, reverse=True)


def test_padding_is_no_label_by_default(model: Any) -> None:
    batch = a_batch()
    batch["labels"] = jnp.where(batch["attention_mask"] == 1, batch["input_ids"], -100)
    _, expected = train(model, 1, **batch)
    del batch["labels"]
    _, actual = train(model, 1, **batch)
    assert actual == expected


def test_bfloat16_products_with_float32_parameters(model: Any) -> None:
    half = type(model)(model.config, dtype=jnp.bfloat16, _do_init=False)
    state, losses = train(holding(half, model.to_bf16(model.params)))  # as read from a file in bfloat16
    assert {value.dtype for value in jax.tree.leaves((state.params, state.opt_state[0].mu))} == {jnp.dtype("float32")}
    _, expected = train(model)
    np.testing.assert_allclose(losses, expected, rtol=3e-2)
    assert losses != expected


def test_dropout_differs_from_step_to_step_and_not_from_run_to_run() -> None:
    dropping = flax_model("FlaxGPTNeoForCausalLM", resid_dropout=0.5)
    optimizer = optax.sgd(0.0)
    state = init_train_state(dropping, optimizer)
    step, losses = make_train_step(dropping, optimizer, state), []
    for _ in range(2):
        state, metrics = step(state, a_batch())
        losses.append(float(metrics["loss"]))
    assert losses[0] != losses[1]
    state, metrics = step(init_train_state(dropping, optimizer), a_batch())
    assert float(metrics["loss"]) == losses[0]


# errors


def test_batches_that_do_not_fit(model: Any) -> None:
    optimizer = optax.sgd(0.1)
    state = init_train_state(model, optimizer)
    step = make_train_step(model, optimizer, state, accumulate=3)
    for batch, error, message in (
        ({"input_ids": token_ids()}, InputError, "2 rows cannot be computed in accumulate=3 parts"),
        ({"input_ids": token_ids(3), "labels": token_ids(2)}, InputError, r"labels has shape \(2, 11\)"),
        ({"ids": token_ids(3)}, InputError, "a batch has ids; expected input_ids"),
        ({"input_ids": token_ids(3) + 60}, TokenIdError, "outside the vocabulary of 61"),
    ):
        with pytest.raises(error, match=message):
            step(state, batch)
    with pytest.raises(OptionError, match="accumulate=0"):
        make_train_step(model, optimizer, state, accumulate=0)


def test_float16_is_refused(model: Any) -> None:
    half = holding(type(model)(model.config, dtype=jnp.float16, _do_init=False), model.params)
    with pytest.raises(OptionError, match=r"float16.*use dtype=jnp.bfloat16"):
        init_train_state(half, optax.sgd(0.1))


# checkpoints


def saved(model: Any, folder: Path, steps: int = 2) -> Any:
    """A folder with the states after every step, and the last of them."""
    optimizer = optax.adamw(3e-3)
    state = init_train_state(model, optimizer)
    step = make_train_step(model, optimizer, state)
    with TrainCheckpoints(folder) as checkpoints:
        for _ in range(steps):
            state, _ = step(state, a_batch())
            checkpoints.save(state)
    return state


@pytest.fixture(scope="module")
def run(model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder in which a run of three steps kept its last two states, and the last of them; to be copied."""
    folder = tmp_path_factory.mktemp("run")
    return folder, saved(model, folder, 3)


@pytest.fixture
def folder(run: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the run's folder."""
    return shutil.copytree(run[0], tmp_path / "run")


def restored(model: Any, folder: Path) -> Any:
    with TrainCheckpoints(folder) as checkpoints:
        return checkpoints.restore(init_train_state(model, optax.adamw(3e-3), seed=5))


@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_state_comes_back_bit_for_bit(model: Any, run: tuple[Path, Any], folder: Path, has_manifest: bool) -> None:
    if not has_manifest:  # as saved by earlier versions
        (folder / "3" / "default" / MANIFEST).unlink()
    state = restored(model, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    assert jax.tree.structure(state) == jax.tree.structure(run[1])
    assert_near(state, run[1], 0)


def test_an_empty_folder_and_a_file(model: Any, tmp_path: Path) -> None:
    with TrainCheckpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore(init_train_state(model, optax.sgd(0.1))) is None
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        TrainCheckpoints(tmp_path / "file")


def emptied(state: Path) -> None:
    for path in state.rglob("d/*"):
        path.write_bytes(b"")


def truncated(state: Path) -> None:  # orbax would wait for ever
    path = state / "manifest.ocdbt"
    path.write_bytes(path.read_bytes()[:-20])


def flipped(state: Path) -> None:
    path = max(state.rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def missing(state: Path) -> None:
    next(state.rglob("d/*")).unlink()


def without_metadata(state: Path) -> None:
    (state / "_METADATA").unlink()


def with_damaged_manifest(state: Path) -> None:
    (state / MANIFEST).write_text("[]")


def emptied_without_manifest(state: Path) -> None:
    (state / MANIFEST).unlink()
    emptied(state)


def without_metadata_and_manifest(state: Path) -> None:
    (state / MANIFEST).unlink()
    without_metadata(state)


@pytest.mark.parametrize(
    ("damage", "message"),
    first(
        [
            (truncated, "manifest.ocdbt has [0-9]+ bytes of [0-9]+"),
            (flipped, "the SHA-256 of .*d/[0-9a-f]+ is not"),
            (missing, "d/[0-9a-f]+ is missing"),
            (with_damaged_manifest, f"{MANIFEST} is not what was written"),
            (emptied_without_manifest, "d/[0-9a-f]+ is empty"),
            (emptied, "has 0 bytes of [0-9]+"),
            (without_metadata, "_METADATA is missing"),
            (without_metadata_and_manifest, "_METADATA is missing"),
        ],
        count=5,
        names=2,
    ),
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_state_is_named(model: Any, folder: Path, damage: Any, message: str) -> None:
    damage(folder / "3" / "default")
    with pytest.raises(CheckpointFormatError, match=rf"3 is damaged \(.*{message}.*remove it to resume from step 2"):
        restored(model, folder)


def test_what_orbax_cannot_read_is_damaged_too(model: Any, folder: Path) -> None:
    state = folder / "3" / "default"
    (state / MANIFEST).unlink()
    (state / "_METADATA").write_text("{")
    with pytest.raises(CheckpointFormatError, match=r"3 is damaged \(.*remove it to resume from step 2"):
        restored(model, folder)


def test_a_state_of_another_model_or_optimizer(model: Any, folder: Path) -> None:
    wide = flax_model("FlaxGPTNeoForCausalLM", hidden_size=64)
    for other, optimizer in ((model, optax.sgd(0.1)), (wide, optax.adamw(3e-3))):
        with (
            TrainCheckpoints(folder) as checkpoints,
            pytest.raises(CheckpointFormatError, match="3 is of another model or optimizer; choose"),
        ):
            checkpoints.restore(init_train_state(other, optimizer))


RUN = """
import json, sys
import jax, numpy as np, optax
from gptrio import FlaxGPTNeoForCausalLM
from gptrio.jax.training import TrainCheckpoints, init_train_state, make_train_step
from gptrio.testing import tiny_config

folder, steps = sys.argv[1], int(sys.argv[2])
model = FlaxGPTNeoForCausalLM(tiny_config("gpt_neo", resid_dropout=0.1))
optimizer = optax.adamw(3e-3)
state = init_train_state(model, optimizer)
step = make_train_step(model, optimizer, state)
with TrainCheckpoints(folder) as checkpoints:
    state = checkpoints.restore(state) or state
    while int(state.step) < steps:
        ids = np.random.default_rng(int(state.step)).integers(0, 256, (2, 16))
        state, metrics = step(state, {"input_ids": ids})
        print(json.dumps([int(state.step), float(metrics["loss"]).hex()]), flush=True)
        checkpoints.save(state)
"""


def start(folder: Path, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(folder), str(steps)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def is_saving(folder: Path) -> bool:
    return any("tmp" in path.name for path in folder.iterdir()) if folder.is_dir() else False


def losses_of(output: str) -> dict[int, str]:
    return dict(json.loads(line) for line in output.splitlines())


def kill_in_the_middle_of_a_save(process: subprocess.Popen[str], folder: Path) -> str:
    """Stop a process while it saves, see that the save is not complete, and kill it; return what it printed."""
    while process.poll() is None:
        if not (folder / "2").is_dir() or not is_saving(folder):  # not the first saves: one is to resume from
            time.sleep(0.0002)
            continue
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.05)
        if is_saving(folder):
            process.kill()
            return process.communicate()[0]
        process.send_signal(signal.SIGCONT)
    raise AssertionError(f"the process ended with {process.returncode} before it was killed")


@pytest.mark.long  # the example of the documentation is killed in every run
def test_a_run_killed_in_the_middle_of_a_save_resumes_with_the_same_losses(tmp_path: Path) -> None:
    steps = 40
    whole = start(tmp_path / "whole", steps)
    killed = kill_in_the_middle_of_a_save(start(tmp_path / "killed", 100_000), tmp_path / "killed")
    assert is_saving(tmp_path / "killed")  # its remains
    before = losses_of(killed)
    end = max(before) + 5
    again = start(tmp_path / "killed", end)
    after = losses_of(again.communicate()[0])
    expected = losses_of(whole.communicate()[0])
    assert again.returncode == whole.returncode == 0
    assert 2 < min(after) <= max(before)
    assert not is_saving(tmp_path / "killed")
    shared = range(1, min(end, steps) + 1)
    assert [(before | after)[i] for i in shared] == [expected[i] for i in shared]
    assert all(before[i] == after[i] for i in before.keys() & after.keys())
