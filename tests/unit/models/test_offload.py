"""Models whose weights accelerate keeps elsewhere: loaded by `device_map`, or dispatched afterwards."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptrio import AutoModelForCausalLM
from gptrio.errors import MissingDependencyError, OptionError
from gptrio.models.base.device_map import execution_device
from gptrio.testing import tiny_config

accelerate = pytest.importorskip("accelerate")
FAMILIES = ("gpt2", "gpt_neo", "gpt_neox")
IDS = torch.tensor([[5, 6, 7, 8, 9], [3, 4, 1, 2, 6]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampling": {"do_sample": True, "seed": 3},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
}


def new(family: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(family)).eval()


def generated(model: Any, **options: Any) -> torch.Tensor:
    options = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None, **options}
    found: torch.Tensor = model.generate(IDS, attention_mask=MASK, **options)
    return found


def blocks_of(model: Any) -> list[str]:
    """The modules that a device map names."""
    prefix = model.base_model_prefix
    names = [name for name, _ in model.base_model.named_children()]
    layers = "layers" if "layers" in names else "h"
    parts = [f"{prefix}.{name}" for name in names if name != layers]
    parts += [f"{prefix}.{layers}.{index}" for index in range(len(getattr(model.base_model, layers)))]
    return [*parts, model.head_name]


def cpu_offload(model: Any, folder: Path) -> Any:
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def disk_offload(model: Any, folder: Path) -> Any:
    return accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))


def dispatch(model: Any, folder: Path) -> Any:
    places = {name: "disk" if index % 2 else "cpu" for index, name in enumerate(blocks_of(model))}
    tied = model.tied_weights()
    for head, table in tied.items():
        places[head.rpartition(".")[0]] = places[table.rpartition(".")[0]]
    return accelerate.dispatch_model(model, places, offload_dir=folder)


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload, dispatch])
@pytest.mark.parametrize("family", FAMILIES)
def test_offloaded_models_give_the_same(family: str, offload: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    model = new(family)
    positions = (MASK.cumsum(-1) - 1).clamp(min=0)
    logits = model(IDS, attention_mask=MASK, position_ids=positions).logits
    wanted = {name: generated(model, **options) for name, options in OPTIONS.items()}
    moved = offload(model, tmp_path)
    assert any(parameter.is_meta for parameter in moved.parameters())
    assert moved.device == torch.device("cpu")
    torch.testing.assert_close(moved(IDS, attention_mask=MASK, position_ids=positions).logits, logits)
    for name, options in OPTIONS.items():
        assert torch.equal(generated(moved, **options), wanted[name]), name


def test_a_model_without_storage_has_no_other_device() -> None:
    with torch.device("meta"):
        model = new("gpt2")
    assert model.device == torch.device("meta")
    assert execution_device(model) is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["auto", "balanced", "sequential"])
def test_auto_within_the_memory_that_is_told(family: str, kind: str, tmp_path: Path) -> None:
    model = new(family)
    model.save_pretrained(tmp_path / "model")
    total = model.get_memory_footprint()
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map=kind,
        max_memory={"cpu": int(total * 0.7)},
        offload_folder=tmp_path / "offload",
        offload_state_dict=True,
    )
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    assert torch.equal(generated(loaded), generated(model))


def test_auto_with_memory_enough_stays_plain(tmp_path: Path) -> None:
    model = new("gpt2")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="auto", max_memory={"cpu": "8GB"})
    assert set(loaded.hf_device_map.values()) == {"cpu"}
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    assert torch.equal(generated(loaded), generated(model))


@pytest.mark.parametrize("places", [{"": "disk"}, {"gpt_neox": "disk", "embed_out": "disk"}, "some"], ids=str)
@pytest.mark.parametrize("load_in", [None, "int8"])
def test_disk_by_name(places: Any, load_in: str | None, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("gpt_neox", hidden_size=64, intermediate_size=128))
    model.save_pretrained(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", load_in=load_in)
    if places == "some":
        places = {name: "disk" if "layers" in name else "cpu" for name in blocks_of(plain)}
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload", load_in=load_in
    )
    assert loaded.hf_device_map == places
    assert any(parameter.is_meta for parameter in loaded.parameters())
    assert torch.equal(generated(loaded), generated(plain, disable_compile=True))  # compiled int8 rounds otherwise


@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_disk_may_be_the_checkpoint_itself(family: str, everything: bool, tmp_path: Path) -> None:
    model = new(family)
    model.save_pretrained(tmp_path)
    places = {"": "disk"} if everything else {name: "disk" if ".1" in name else "cpu" for name in blocks_of(model)}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places)
    assert any(parameter.is_meta for parameter in loaded.parameters())
    assert torch.equal(generated(loaded), generated(model))
    assert len(list(tmp_path.iterdir())) == 3  # no copy of the weights


@pytest.mark.parametrize("way", [{"use_safetensors": False}, {"dtype": torch.bfloat16}, {"load_in": "int8"}], ids=str)
def test_disk_needs_a_folder_for_what_the_checkpoint_does_not_hold(way: dict[str, Any], tmp_path: Path) -> None:
    new("gpt2").save_pretrained(tmp_path, safe_serialization=way.get("use_safetensors", True))
    places = {"transformer": "disk", "lm_head": "cpu"}
    with pytest.raises(OptionError, match="puts transformer on disk; pass offload_folder"):
        AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places, **way)


@pytest.mark.parametrize(
    "arguments",
    [{"device_map": "auto", "max_memory": {"cpu": "8GB"}}, {"device_map": {"": "disk"}, "offload_folder": "x"}],
    ids=str,
)
def test_without_accelerate(tmp_path: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    new("gpt2").save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gptrio\[accelerate\]'"):
        AutoModelForCausalLM.from_pretrained(tmp_path, **arguments)
