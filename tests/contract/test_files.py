"""Models go into folders and come back, whole or in part, as they were or as asked."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gptrio
from gptrio.errors import (
    CheckpointNotFoundError,
    ConfigError,
    GptrioWarning,
    OptionError,
    SizeMismatchError,
    UnsupportedError,
)
from gptrio.testing import assert_close
from tests.contract.families import Family, tokens


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def saved(family: Family, tmp_path: Path) -> tuple[Any, Path]:
    """A language model and the folder it was saved into."""
    model = family.build()
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("size", ["5GB", "20KB"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_save_and_load(family: Family, tmp_path: Path, safe: bool, size: str, variant: str | None) -> None:
    model = family.build()
    model.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size=size, variant=variant)
    loaded, info = family.class_of("lm").from_pretrained(tmp_path, variant=variant, output_loading_info=True)
    assert not any(info.values())
    assert_same_weights(loaded, model)
    assert not loaded.training
    assert loaded.name_or_path == str(tmp_path)
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    ids = tokens()
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    suffix = ".safetensors" if safe else ".bin"
    weights = [path.name for path in tmp_path.iterdir() if path.suffix == suffix]
    assert (len(weights) > 1) == (size == "20KB")
    assert all(("fp16" in name) == (variant is not None) for name in weights)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [family.causal_lm]


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"])
def test_heads_save_and_load(family: Family, tmp_path: Path, head: str) -> None:
    model = family.build(head, num_labels=5)
    model.save_pretrained(tmp_path)
    loaded, info = family.class_of(head).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.num_labels == 5
    assert_same_weights(loaded, model)


def test_tied_weights_are_stored_once_and_tied_again(family: Family, tmp_path: Path) -> None:
    from safetensors import safe_open

    model = family.build(tie_word_embeddings=True)
    assert list(model.tied_weights()) == [f"{family.head}.weight"]
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert f"{family.head}.weight" not in file.keys()  # noqa: SIM118 - not a mapping
    loaded = family.class_of("lm").from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_untied_weights_stay_apart(family: Family, tmp_path: Path) -> None:
    model = family.build(tie_word_embeddings=False)
    assert model.tied_weights() == {}
    model.save_pretrained(tmp_path)
    loaded = family.class_of("lm").from_pretrained(tmp_path)
    assert_same_weights(loaded, model)
    assert loaded.get_output_embeddings().weight is not loaded.get_input_embeddings().weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_dtype(family: Family, tmp_path: Path, dtype: torch.dtype) -> None:
    load = family.class_of("lm").from_pretrained
    family.build().to(dtype).save_pretrained(tmp_path)
    name = str(dtype).removeprefix("torch.")
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == name
    assert load(tmp_path).dtype == torch.float32
    for options in ({"dtype": "auto"}, {"dtype": dtype}, {"dtype": name}, {"torch_dtype": dtype}):
        model = load(tmp_path, **options)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert model.config.dtype == dtype
    with pytest.raises(OptionError, match="dtype='half-hearted' is not a type"):
        load(tmp_path, dtype="half-hearted")
    assert torch.get_default_dtype() == torch.float32


def test_dtype_auto_reads_the_file_where_the_configuration_is_silent(saved: tuple[Any, Path], family: Family) -> None:
    model, folder = saved
    model.to(torch.bfloat16).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    assert family.class_of("lm").from_pretrained(folder, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("device_map", ["auto", "cpu", "balanced", {"": "cpu"}, torch.device("cpu")], ids=str)
def test_device_map(saved: tuple[Any, Path], family: Family, device_map: Any) -> None:
    model, folder = saved
    loaded = family.class_of("lm").from_pretrained(folder, device_map=device_map)
    if not torch.cuda.is_available():
        assert loaded.device == torch.device("cpu")
    assert_same_weights(loaded.cpu(), model)


def test_device_map_by_module(saved: tuple[Any, Path], family: Family) -> None:
    model, folder = saved
    load = family.class_of("lm").from_pretrained
    prefix = model.base_model_prefix
    loaded = load(folder, device_map={prefix: "cpu", family.head: "cpu"})
    assert loaded.hf_device_map == {prefix: "cpu", family.head: "cpu"}
    assert_same_weights(loaded, model)
    with pytest.raises(OptionError, match=f"device_map has no device for {prefix}"):
        load(folder, device_map={family.head: "cpu"})


def test_other_sizes(saved: tuple[Any, Path], family: Family) -> None:
    model, folder = saved
    load = family.class_of("lm").from_pretrained
    with pytest.raises(SizeMismatchError, match=r"ignore_mismatched_sizes=True"):
        load(folder, vocab_size=300)
    with pytest.warns(GptrioWarning, match="their shapes differ") as caught:
        loaded, info = load(folder, vocab_size=300, ignore_mismatched_sizes=True, output_loading_info=True)
    assert len(caught) == 1
    names = set(info["mismatched_keys"])
    assert names == {n for n, p in model.state_dict().items() if p.shape[0] == 257 and p.dim() == 2} - {
        tied for tied in model.tied_weights() if tied not in names
    }
    table = loaded.get_input_embeddings().weight
    assert table.shape == (300, 32)
    assert 0.01 < table.std() < 0.04  # drawn anew with the configuration's 0.02
    assert loaded(input_ids=tokens()).logits.isfinite().all()


def test_state_dict_instead_of_files(saved: tuple[Any, Path], family: Family) -> None:
    model, folder = saved
    other = family.build().state_dict()
    cls = family.class_of("lm")
    assert all(torch.equal(p, other[n]) for n, p in cls.from_pretrained(folder, state_dict=other).state_dict().items())
    loaded = cls.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert_same_weights(loaded, model)
    with torch.no_grad():
        loaded.get_input_embeddings().weight.zero_()
    assert model.get_input_embeddings().weight.abs().sum() > 0


def test_config_overrides(saved: tuple[Any, Path], family: Family) -> None:
    _, folder = saved
    with pytest.warns(GptrioWarning, match=r"2 drawn at random|1 drawn at random"):
        model = family.class_of("ForTokenClassification").from_pretrained(folder, num_labels=7, use_cache=False)
    assert (model.config.num_labels, model.config.use_cache) == (7, False)
    assert model(input_ids=tokens()).logits.shape[-1] == 7


def test_a_given_config_stays_as_it_is(saved: tuple[Any, Path], family: Family) -> None:
    model, folder = saved
    config = type(model.config).from_pretrained(folder)
    before = config.to_dict()
    options = {"use_cache": False, "attn_implementation": "eager", "dtype": torch.bfloat16}
    loaded = family.class_of("lm").from_pretrained(folder, config=config, **options)
    assert loaded.config.use_cache is False
    assert config.to_dict() == before
    assert config._attn_implementation is None
    from_folder = family.class_of("lm").from_pretrained(folder, config=folder)
    assert_same_weights(from_folder, model)


def test_subfolder(saved: tuple[Any, Path], family: Family) -> None:
    model, folder = saved
    loaded = family.class_of("lm").from_pretrained(folder.parent, subfolder=folder.name)
    assert_same_weights(loaded, model)
    loaded = gptrio.AutoModelForCausalLM.from_pretrained(folder.parent, subfolder=folder.name)
    assert_same_weights(loaded, model)


@pytest.mark.parametrize("back_end", ["eager", "sdpa"])
def test_attn_implementation(saved: tuple[Any, Path], family: Family, back_end: str) -> None:
    model, folder = saved
    loaded = family.class_of("lm").from_pretrained(folder, attn_implementation=back_end)
    assert loaded.attn_implementation == loaded.config._attn_implementation == back_end
    loaded.save_pretrained(folder)
    assert "attn" not in " ".join(k for k in json.loads((folder / "config.json").read_text()) if "implementation" in k)
    ids = tokens()
    assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    with pytest.raises((UnsupportedError, ConfigError), match="fastest"):
        family.class_of("lm").from_pretrained(folder, attn_implementation="fastest")


def test_use_safetensors(family: Family, tmp_path: Path) -> None:
    model, load = family.build(), family.class_of("lm").from_pretrained
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert_same_weights(load(tmp_path), model)
    assert_same_weights(load(tmp_path, use_safetensors=False), model)
    with pytest.raises(CheckpointNotFoundError, match=r"model\.safetensors"):
        load(tmp_path, use_safetensors=True)
    with pytest.raises(CheckpointNotFoundError, match=r"fp16"):
        load(tmp_path, variant="fp16")


def test_unknown_arguments(saved: tuple[Any, Path], family: Family) -> None:
    _, folder = saved
    with pytest.raises(OptionError, match="does not know atn_implementation, torch_type"):
        family.class_of("lm").from_pretrained(folder, atn_implementation="eager", torch_type="float16")


def test_base_checkpoint_in_a_head_class(family: Family, tmp_path: Path) -> None:
    base = family.build("base")
    base.save_pretrained(tmp_path)
    with pytest.warns(GptrioWarning) as caught:
        model, info = family.class_of("ForSequenceClassification").from_pretrained(tmp_path, output_loading_info=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "score.weight" in str(caught[0].message)
    assert info["missing_keys"] == ["score.weight"]
    assert info["unexpected_keys"] == []
    assert_same_weights(model.base_model, base)
    assert 0.005 < model.score.weight.std() < 0.05


def test_base_checkpoint_in_the_language_model(family: Family, tmp_path: Path) -> None:
    base = family.build("base", tie_word_embeddings=True)
    base.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = family.class_of("lm").from_pretrained(tmp_path)
    assert_same_weights(model.base_model, base)
    assert model.get_output_embeddings().weight is base_table(model)


def base_table(model: Any) -> torch.Tensor:
    weight: torch.Tensor = model.base_model.get_input_embeddings().weight
    return weight


def test_head_checkpoint_in_the_base_class(family: Family, tmp_path: Path) -> None:
    head = family.build("ForTokenClassification")
    head.save_pretrained(tmp_path)
    with pytest.warns(GptrioWarning) as caught:
        base, info = family.class_of("base").from_pretrained(tmp_path, output_loading_info=True)
    assert len(caught) == 1
    assert "classifier.weight" in str(caught[0].message)
    assert set(info["unexpected_keys"]) == {"classifier.weight", "classifier.bias"}
    assert_same_weights(base, head.base_model)


def test_pruned_model_saves_and_loads(family: Family, tmp_path: Path) -> None:
    model = family.build()
    model.prune_heads({0: [1, 2], 1: [0]})
    model.save_pretrained(tmp_path)
    loaded, info = family.class_of("lm").from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.pruned_heads == {0: [1, 2], 1: [0]}
    ids = tokens()
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    loaded.prune_heads({0: [0]})
    assert loaded.config.pruned_heads[0] == [0, 1, 2]


def test_resized_model_saves_and_loads(family: Family, tmp_path: Path) -> None:
    model = family.build()
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path)
    loaded = family.class_of("lm").from_pretrained(tmp_path)
    assert loaded.config.vocab_size == 300
    assert_same_weights(loaded, model)


def test_failed_save_leaves_the_folder_as_it_was(
    saved: tuple[Any, Path], family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = family.build()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        changed.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.undo()
    assert_same_weights(family.class_of("lm").from_pretrained(folder), model)


def test_saving_nothing_but_on_the_main_process(family: Family, tmp_path: Path) -> None:
    family.build().save_pretrained(tmp_path / "model", is_main_process=False)
    assert not (tmp_path / "model").exists()


def test_saving_a_given_state_dict(family: Family, tmp_path: Path) -> None:
    model, other = family.build(), family.build()
    model.save_pretrained(tmp_path, state_dict=other.state_dict())
    assert_same_weights(family.class_of("lm").from_pretrained(tmp_path), other)
