"""Folders as other programs write them: weights of TensorFlow or Flax, tokenizers of Transformers 5, no model type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gptrio
from gptrio.errors import CheckpointNotFoundError, ConfigError, SizeMismatchError, TokenizationError
from gptrio.hub import local_folder


@pytest.mark.parametrize(
    ("name", "way_out"),
    [("tf_model.h5", "Transformers and from_tf=True"), ("flax_model.msgpack", "pass from_flax=True")],
)
def test_weights_of_other_libraries_are_named_with_the_way_out(tmp_path: Path, name: str, way_out: str) -> None:
    gptrio.GPT2Config().save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(CheckpointNotFoundError, match=f"it holds {name}.*{way_out}"):
        gptrio.GPT2LMHeadModel.from_pretrained(tmp_path)


def test_a_tokenizer_of_transformers_5_gives_the_same_ids(tmp_path: Path) -> None:
    before = gptrio.AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2")
    before.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    before.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["tokenizer_class"] = "TokenizersBackend"
    settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    path.write_text(json.dumps(settings))
    after = gptrio.AutoTokenizer.from_pretrained(tmp_path)
    text = "import os<turn> x = 1"
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.additional_special_tokens == ["<turn>"]
    assert after.decode(after(text)["input_ids"], skip_special_tokens=True) == "import os x = 1"


@pytest.mark.parametrize(
    ("name", "kind"), [("my-gpt2", "gpt2"), ("gpt_neox_small", "gpt_neox"), ("gpt_neo-x", "gpt_neo")]
)
def test_the_folder_names_the_family_when_config_does_not(tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"vocab_size": 7}))
    config = gptrio.AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.vocab_size) == (kind, 7)


def test_more_layers_than_the_weights_have_are_refused_before_any_is_built(tmp_path: Path) -> None:
    folder = local_folder("gptrio/stdlib-gpt2")
    assert folder is not None
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text()) | {"n_layer": 10**9}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="num_hidden_layers=1000000000 is not possible; the weights have"):
        gptrio.AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["n_embd", "n_head", "n_inner", "n_positions", "vocab_size", "n_layer"])
@pytest.mark.parametrize("size", [2**24, 10**9, 2**31 - 1, 10**30])
def test_sizes_that_the_weights_do_not_have_are_refused(tmp_path: Path, name: str, size: int) -> None:
    folder = local_folder("gptrio/stdlib-gpt2")
    assert folder is not None
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text()) | {name: size}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises((ConfigError, SizeMismatchError)) as found:
        gptrio.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert str(size) in str(found.value)


@pytest.mark.parametrize("limit", ["abc", float("nan"), float("inf"), [3]])
def test_a_length_that_is_no_number_of_tokens_is_refused(limit: object) -> None:
    with pytest.raises(TokenizationError, match="model_max_length is"):
        gptrio.AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2", model_max_length=limit)
