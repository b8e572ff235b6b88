"""Ours and the reference's, of Flax and of PyTorch: each class reads what the others write."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_flax_pytorch_utils import load_flax_checkpoint_in_pytorch_model

import gptrio
from tests.cases import first
from tests.flax_models import SIZES, assert_near, token_ids
from tests.parity.test_uploads import Hub, watch
from tests.reference import model_pair

CLASSES = ["GPTNeoForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM"]
LIBRARIES = {"ours": gptrio, "theirs": transformers}
SHARDS = {"max_shard_size": "30KB"}
FLAX_WAYS: dict[str, dict[str, Any]] = {
    "msgpack": {},
    "msgpack in shards": SHARDS,
    "safetensors": {"safe_serialization": True},
    "safetensors in shards": {"safe_serialization": True, **SHARDS},
}
ONE_FILE = {"msgpack": "flax_model.msgpack", "safetensors": "model.safetensors"}
TORCH_WAYS: dict[str, dict[str, Any]] = {
    "safetensors": {},
    "safetensors in shards": SHARDS,
    "torch": {"safe_serialization": False},
    "torch in shards": {"safe_serialization": False, **SHARDS},
}


class Models(NamedTuple):
    """One model of a class: of PyTorch and of Flax, ours and the reference's, which lacks Flax's GPT-NeoX."""

    name: str
    torch: dict[str, Any]
    flax: dict[str, Any]
    logits: np.ndarray[Any, Any]


@pytest.fixture(scope="module", params=first(CLASSES))
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    family = next(name for name in SIZES if request.param.startswith(name))
    theirs, ours = model_pair(request.param, **SIZES[family])
    folder = tmp_path_factory.mktemp("files")
    theirs.save_pretrained(folder)
    of_torch = {"ours": ours, "theirs": theirs}
    of_flax = {"ours": getattr(gptrio, f"Flax{request.param}").from_pretrained(folder)}
    if hasattr(transformers, f"Flax{request.param}"):
        of_flax["theirs"] = getattr(transformers, f"Flax{request.param}").from_pretrained(folder)
    found = Models(request.param, of_torch, of_flax, torch_logits(theirs))
    for model in of_flax.values():
        assert_near(model(token_ids()).logits, found.logits)
    return found


def torch_logits(model: Any) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return model.eval()(torch.tensor(token_ids())).logits.numpy()


def check_torch(models: Models, library: str, folder: Path, **arguments: Any) -> None:
    """A PyTorch class reads a folder without drawing anything."""
    cls = getattr(LIBRARIES[library], models.name)
    loaded, info = cls.from_pretrained(folder, output_loading_info=True, **arguments)
    assert not info["missing_keys"]
    assert_near(torch_logits(loaded), models.logits, 2e-6)


def check_their_torch_from_flax(models: Models, path: Path) -> None:
    """The reference's PyTorch class reads a Flax file by the function behind `from_flax=True`.

    In 4.56.2 `from_pretrained(..., from_flax=True)` itself loads nothing: it copies into parameters on "meta".
    """
    cls = getattr(transformers, models.name)
    loaded = load_flax_checkpoint_in_pytorch_model(cls(cls.config_class.from_pretrained(path.parent)), str(path))
    assert_near(torch_logits(loaded), models.logits, 2e-6)


def check_flax(models: Models, library: str, folder: Path, **arguments: Any) -> None:
    """A Flax class reads exactly the parameters that were written."""
    cls = getattr(LIBRARIES[library], f"Flax{models.name}")
    if library == "theirs" and "from_pt" in arguments:  # it needs drawn parameters for this
        params = cls.from_pretrained(folder, **arguments).params
    else:
        params = cls.from_pretrained(folder, _do_init=False, **arguments)[1]
    assert jax.tree.structure(params) == jax.tree.structure(models.flax["ours"].params)
    assert_near(params, models.flax["ours"].params, 0)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # the reference's PyTorch classes
@pytest.mark.parametrize(
    ("writer", "way"),
    # the reference's Flax classes do not write safetensors in shards
    [
        (writer, way)
        for writer in LIBRARIES
        for way in FLAX_WAYS
        if (writer, way) != ("theirs", "safetensors in shards")
    ],
)
def test_what_flax_classes_write(models: Models, writer: str, way: str, tmp_path: Path) -> None:
    if writer not in models.flax:
        pytest.skip(f"the reference has no Flax{models.name}")
    models.flax[writer].save_pretrained(tmp_path, **FLAX_WAYS[way])
    check_flax(models, "ours", tmp_path)
    check_torch(models, "ours", tmp_path, from_flax=True)
    if way.startswith("safetensors"):
        check_torch(models, "ours", tmp_path)
    if "theirs" in models.flax and way != "safetensors in shards":  # which theirs do not read
        check_flax(models, "theirs", tmp_path)
        if way in ONE_FILE:
            check_their_torch_from_flax(models, tmp_path / ONE_FILE[way])


@pytest.mark.parametrize("way", TORCH_WAYS)
@pytest.mark.parametrize("writer", LIBRARIES)
def test_what_pytorch_classes_write(models: Models, writer: str, way: str, tmp_path: Path) -> None:
    models.torch[writer].save_pretrained(tmp_path, **TORCH_WAYS[way])
    check_flax(models, "ours", tmp_path)
    check_flax(models, "ours", tmp_path, from_pt=True)
    check_torch(models, "ours", tmp_path)
    check_torch(models, "theirs", tmp_path)
    if writer == "ours" and "theirs" in models.flax and "shards" not in way:
        check_flax(models, "theirs", tmp_path, from_pt=True)


@pytest.mark.parametrize("options", [{}, {"safe_serialization": False, **SHARDS}], ids=str)
def test_a_model_that_is_pushed_loads_from_what_the_hub_got(
    models: Models, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    tokens = watch(monkeypatch, hub, gptrio)
    monkeypatch.chdir(tmp_path)
    models.flax["ours"].push_to_hub("me/tiny", commit_message="new", private=True, token="secret", **options)
    assert [call[0] for call in hub.calls] == ["repo", "commit"]
    assert hub.calls[0][1:3] == ("me/tiny", True)
    assert hub.calls[1][3]["commit_message"] == "new"
    assert set(tokens) == {"secret"}
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    assert {"README.md", "config.json", "generation_config.json"} <= set(hub.files)
    check_flax(models, "ours", tmp_path)
