"""Flax models from files and back: without torch, in their types, and with clear errors for what does not fit."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import gptrio
from gptrio.errors import (
    CheckpointFormatError,
    CheckpointNotFoundError,
    GptrioWarning,
    InputError,
    OptionError,
    SizeMismatchError,
)
from gptrio.testing import tiny_config
from tests.flax_models import assert_near

IDS = np.arange(1, 12)[None]
Neo = gptrio.FlaxGPTNeoForCausalLM


@pytest.fixture(scope="module")
def model() -> Any:
    return Neo(tiny_config("gpt_neo"), seed=1)


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path)
    return tmp_path


def with_params(model: Any, folder: Path, **changes: Any) -> Path:
    """Save with parameters replaced, by their paths; None leaves one out."""
    flat = flatten_dict(model.params, sep="/")
    flat.update({name.replace("__", "/"): value for name, value in changes.items()})
    tree = unflatten_dict({name: value for name, value in flat.items() if value is not None}, sep="/")
    model.save_pretrained(folder, params=tree)
    return folder


def test_load_forward_generate_and_save_need_no_torch(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys, numpy\nsys.modules['torch'] = None\n"
        "from gptrio import FlaxGPTNeoForCausalLM\n"
        f"model = FlaxGPTNeoForCausalLM.from_pretrained({str(folder)!r})\n"
        "assert model(numpy.arange(1, 12)[None]).logits.shape == (1, 11, 257)\n"
        "assert model.generate([[3, 4]], max_new_tokens=2, eos_token_id=None).sequences.shape == (1, 4)\n"
        f"model.save_pretrained({str(tmp_path / 'again')!r})\n"
        f"model.save_pretrained({str(tmp_path / 'again')!r}, safe_serialization=True)\n"
        "assert not [name for name in sys.modules if name.startswith('torch.')]\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_folder_with_all_files(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "flax_model.msgpack",
        "generation_config.json",
    ]
    assert gptrio.GPTNeoConfig.from_pretrained(folder).architectures == ["GPTNeoForCausalLM"]


@pytest.mark.parametrize("arguments", [{}, {"safe_serialization": True}], ids=str)
def test_types_of_the_file_are_kept(model: Any, tmp_path: Path, arguments: dict[str, Any]) -> None:
    half = model.to_bf16(model.params)
    model.save_pretrained(tmp_path, params=half, **arguments)
    loaded = Neo.from_pretrained(tmp_path, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype(jnp.bfloat16)}
    assert_near(loaded.params, half, 0)
    assert loaded(IDS).logits.dtype == jnp.bfloat16


def test_parameters_outside_of_the_model(model: Any, folder: Path) -> None:
    loaded, params = Neo.from_pretrained(folder, _do_init=False)
    assert_near(loaded(IDS, params=params).logits, model(IDS).logits, 0)
    for use in (lambda: loaded.params, lambda: loaded(IDS), lambda: setattr(loaded, "params", params)):
        with pytest.raises(InputError, match="_do_init=False"):
            use()


def test_missing_parameters_are_drawn_with_a_warning(model: Any, tmp_path: Path) -> None:
    with_params(model, tmp_path, transformer__ln_f__scale=None, transformer__h__0__mlp__c_fc__kernel=None)
    with pytest.warns(GptrioWarning, match=r"2 drawn at random.*transformer\.h\.0\.mlp\.c_fc\.weight"):
        loaded = Neo.from_pretrained(tmp_path)
    assert loaded.required_params == model.required_params
    assert float(loaded.params["transformer"]["ln_f"]["scale"].min()) == 1
    with pytest.warns(GptrioWarning, match="2 drawn at random"):
        loaded, params = Neo.from_pretrained(tmp_path, _do_init=False)
    assert len(flatten_dict(params)) == len(loaded.required_params) - 2
    whole = loaded.init_weights(jax.random.key(0), (1, 1), params)
    assert flatten_dict(whole).keys() == loaded.required_params
    assert np.isfinite(loaded(IDS, params=whole).logits).all()


def test_unexpected_parameters_are_named(model: Any, tmp_path: Path) -> None:
    with_params(model, tmp_path, transformer__extra__kernel=jnp.ones((2, 2)))
    with pytest.warns(GptrioWarning, match=r"1 in the checkpoint but not in the model: transformer\.extra\.weight"):
        Neo.from_pretrained(tmp_path)


def test_other_shapes_are_an_error_unless_they_may_be_drawn(model: Any, tmp_path: Path) -> None:
    with_params(model, tmp_path, transformer__ln_f__bias=jnp.ones(7))
    with pytest.raises(SizeMismatchError, match=r"transformer/ln_f/bias: \(7,\) in the checkpoint, \(32,\)"):
        Neo.from_pretrained(tmp_path)
    with pytest.warns(GptrioWarning, match=r"ln_f/bias \(7,\) instead of \(32,\)"):
        loaded = Neo.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert loaded.params["transformer"]["ln_f"]["bias"].shape == (32,)


def test_a_truncated_file(folder: Path) -> None:
    path = folder / "flax_model.msgpack"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointFormatError, match="is not a whole msgpack file"):
        Neo.from_pretrained(folder)


def test_an_index_that_names_a_wrong_shard(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    index = tmp_path / "flax_model.msgpack.index.json"
    text = index.read_text()
    first = sorted(tmp_path.glob("*.msgpack"))[0].name
    index.write_text(text.replace(first, sorted(tmp_path.glob("*.msgpack"))[-1].name))
    with pytest.raises(CheckpointFormatError, match=r"lacks tensor .*, which its index places there"):
        Neo.from_pretrained(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    tiny_config("gpt_neo").save_pretrained(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=r"expected flax_model\.msgpack .* or model\.safetensors"):
        Neo.from_pretrained(tmp_path)


def test_unknown_arguments(folder: Path) -> None:
    with pytest.raises(OptionError, match="does not know colour"):
        Neo.from_pretrained(folder, colour="red")
    assert Neo.from_pretrained(folder, gradient_checkpointing=True, output_attentions=True)(IDS).attentions


def test_an_older_file_that_loading_prefers_is_named(model: Any, folder: Path) -> None:
    with pytest.warns(GptrioWarning, match=r"flax_model\.msgpack is older than the safetensors file just saved"):
        model.save_pretrained(folder, safe_serialization=True)


def test_parts_of_a_repository(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "inner")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = Neo.from_pretrained(tmp_path, subfolder="inner")
    assert_near(loaded.params, model.params, 0)


def test_a_place_is_chosen_for_each_parameter(model: Any, folder: Path) -> None:
    placed = {}

    def place(path: tuple[str, ...], array: np.ndarray[Any, Any]) -> jax.Array:
        placed["/".join(path)] = array.shape
        return jnp.asarray(array)

    Neo.from_pretrained(folder, place=place)
    assert placed == {name: value.shape for name, value in flatten_dict(model.params, sep="/").items()}
