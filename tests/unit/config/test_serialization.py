"""Configurations as dictionaries and files: round trips, overrides, files that are broken or of another family."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest

from gptrio.config import GPT2Config, GPTNeoConfig, GPTNeoXConfig, PretrainedConfig
from gptrio.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    ConfigError,
    GptrioWarning,
)

FAMILIES = pytest.mark.parametrize("family", [GPT2Config, GPTNeoConfig, GPTNeoXConfig])
SIZES = {"hidden_size": 24, "num_attention_heads": 3}


@FAMILIES
def test_round_trip_through_files_keeps_everything(family: type[PretrainedConfig], tmp_path: Path) -> None:
    config = family(
        **SIZES, vocab_size=99, n_ctx=7, task_specific_params={"a": {"b": 1}}, dtype="bfloat16", num_labels=5
    )
    config.save_pretrained(tmp_path)
    again = family.from_pretrained(tmp_path)
    assert again == config
    assert again.n_ctx == 7
    assert again.task_specific_params == {"a": {"b": 1}}
    assert again.num_labels == 5
    assert again.name_or_path == str(tmp_path)
    assert family.from_pretrained(tmp_path / "config.json") == config
    assert family.from_json_file(tmp_path / "config.json") == config
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]


@FAMILIES
def test_copies_are_equal_and_separate(family: type[PretrainedConfig]) -> None:
    config = family(**SIZES, extra=[1, 2])
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), family.from_dict(config.to_dict())):
        assert twin == config
        twin.extra.append(3)
        assert twin != config
    assert config != object()


def test_overrides_and_unused_keywords(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)
    config, unused = GPT2Config.from_pretrained(
        tmp_path, return_unused_kwargs=True, hidden_size=24, output_attentions=True, torch_dtype="float16", wings=2
    )
    assert (config.n_embd, config.output_attentions, config.dtype_name) == (24, True, "float16")
    assert unused == {"dtype": "float16", "wings": 2}
    assert not hasattr(config, "wings")
    with pytest.raises(ConfigError, match="n_layer=-1"):
        GPT2Config.from_pretrained(tmp_path, num_hidden_layers=-1)


def test_dtype_is_a_name_in_files_and_a_torch_dtype_for_readers() -> None:
    import torch

    for given in ("bfloat16", torch.bfloat16, "torch.bfloat16"):
        config = GPT2Config(torch_dtype=given)
        assert config.dtype is config.torch_dtype is torch.bfloat16
        assert config.to_dict()["dtype"] == json.loads(config.to_json_string())["dtype"] == "bfloat16"
    config.torch_dtype = torch.float16
    assert config.dtype_name == "float16"
    assert GPT2Config().dtype is None


def test_attention_implementation_is_not_saved(tmp_path: Path) -> None:
    config = GPT2Config(attn_implementation="sdpa")
    assert config._attn_implementation == "sdpa"
    config.save_pretrained(tmp_path)
    assert "sdpa" not in (tmp_path / "config.json").read_text()
    assert GPT2Config.from_pretrained(tmp_path)._attn_implementation is None
    assert GPT2Config.from_pretrained(tmp_path, attn_implementation="eager")._attn_implementation == "eager"


def test_generation_keys_of_old_files_are_kept(tmp_path: Path) -> None:
    config = GPT2Config.from_dict({"max_length": 50, "do_sample": True})
    assert (config.max_length, config.top_k) == (50, 50)
    assert config._get_non_default_generation_parameters() == {"max_length": 50, "do_sample": True}
    assert GPT2Config()._get_non_default_generation_parameters() == {}
    with pytest.warns(GptrioWarning, match="max_length=50, do_sample=True in config.json"):
        config.save_pretrained(tmp_path)
    assert GPT2Config.from_pretrained(tmp_path).max_length == 50


def test_value_that_json_cannot_hold(tmp_path: Path) -> None:
    config = GPT2Config(odd=object())
    with pytest.raises(ConfigError, match="a value that JSON cannot"):
        config.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "<object object" in repr(config)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json"):
        GPT2Config.from_pretrained(tmp_path)
    file = tmp_path / "config.json"
    for content in ("{", "\x00", "[1]", '"x"'):
        file.write_text(content)
        with pytest.raises(CheckpointFormatError, match=r"config\.json"):
            GPT2Config.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a file"):
        GPT2Config().save_pretrained(file)


def test_file_of_another_family_is_refused(tmp_path: Path) -> None:
    GPTNeoConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="'gpt_neo'; use that family's class or AutoConfig"):
        GPT2Config.from_pretrained(tmp_path)
