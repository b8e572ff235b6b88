"""What is particular to a family: attention layers of GPT-Neo, rotary options of GPT-NeoX, and the choice by type."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptrio.config import AutoConfig, GPT2Config, GPTNeoConfig, GPTNeoXConfig, PretrainedConfig
from gptrio.config.auto import CONFIG_MAPPING
from gptrio.errors import ConfigError, GptrioWarning, UnsupportedError

NEOX = {"hidden_size": 32, "num_attention_heads": 2, "rotary_pct": 0.5}  # 16 wide heads, 8 dimensions rotated


def test_attention_types_are_written_out() -> None:
    config = GPTNeoConfig(num_layers=3, attention_types=[[["global", "local"], 1], [["local"], 1]])
    assert config.attention_layers == ["global", "local", "local"]
    assert config.to_dict()["attention_layers"] == ["global", "local", "local"]
    assert GPTNeoConfig().attention_layers == ["global", "local"] * 12


def test_attention_layers_alone_are_enough() -> None:
    config = GPTNeoConfig(num_layers=2, attention_layers=["local", "global"])
    assert config.attention_layers == ["local", "global"]
    assert GPTNeoConfig.from_dict(config.to_dict()) == config


def test_override_of_attention_types_replaces_stored_layers() -> None:
    stored = GPTNeoConfig().to_dict()
    config = GPTNeoConfig.from_dict(stored, num_layers=2, attention_types=[[["local"], 2]])
    assert config.attention_layers == ["local", "local"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_layers": 5}, r"describes 24 layers, but num_layers=5"),
        ({"attention_types": [[["global", "sparse"], 12]]}, r"attention_types=.* kinds out of global, local"),
        ({"attention_types": ["global"]}, r"attention_types="),
        ({"attention_types": 3}, r"attention_types=3"),
        ({"attention_types": [[["global"], "24"]]}, r"attention_types="),
        ({"window_size": 0}, r"window_size=0"),
        ({"hidden_size": 30, "num_heads": 4}, r"hidden_size=30 is not divisible by num_heads=4"),
    ],
)
def test_impossible_gpt_neo(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPTNeoConfig(**values)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"type": "linear", "factor": 2},
        {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32, "attention_factor": None},
        {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
)
def test_rope_scaling_kinds(scaling: dict[str, Any]) -> None:
    given = dict(scaling)
    config = GPTNeoXConfig(**NEOX, rope_scaling=given)
    assert config.rope_scaling is not None
    assert config.rope_scaling["rope_type"] == scaling.get("type", scaling.get("rope_type"))
    assert given == scaling
    assert GPTNeoXConfig.from_dict(json.loads(config.to_json_string())) == config


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (3, r"rope_scaling=3 is not possible; expected None or a dictionary"),
        ({}, r"rope_type=None .* default, linear, dynamic, yarn, longrope, llama3"),
        ({"rope_type": "spiral"}, r"rope_type='spiral'"),
        ({"rope_type": "linear"}, r"type 'linear' lacks factor"),
        ({"rope_type": "linear", "factor": 0.5}, r"factor=0\.5 .* >= 1"),
        ({"rope_type": "dynamic", "factor": "2"}, r"factor='2'"),
        ({"rope_type": "yarn", "factor": 2.0, "beta_fast": 1, "beta_slow": 2}, r"beta_fast=1 .* more than beta_slow=2"),
        (
            {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4},
            r"short_factor has 1 .* expected 4",
        ),
        ({"rope_type": "longrope", "short_factor": 1.0, "long_factor": [1.0] * 4}, r"short_factor=1\.0 .* list"),
        ({"rope_type": "llama3", "factor": 2.0}, r"lacks high_freq_factor, low_freq_factor, original_max"),
    ],
)
def test_impossible_rope_scaling(scaling: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPTNeoXConfig(**NEOX, rope_scaling=scaling)


def test_unused_rope_key_warns_once() -> None:
    with pytest.warns(GptrioWarning, match="type 'linear' does not use wings") as caught:
        GPTNeoXConfig(**NEOX, rope_scaling={"rope_type": "linear", "factor": 2.0, "wings": 2})
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rotary_pct": -0.1}, r"rotary_pct=-0\.1"),
        ({"rotary_pct": 1.1}, r"rotary_pct=1\.1"),
        ({"rotary_emb_base": -1}, r"rotary_emb_base=-1"),
        ({"hidden_size": 10, "num_attention_heads": 3}, r"hidden_size=10 is not divisible"),
        ({"rotary_emb_base": 10000, "rope_theta": 5}, r"rotary_emb_base=10000 and rope_theta=5 disagree"),
    ],
)
def test_impossible_gpt_neox(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPTNeoXConfig(**values)


def test_rotary_fields_as_transformers_5_writes_them() -> None:
    config = GPTNeoXConfig(rope_parameters={"rope_theta": 500.0, "partial_rotary_factor": 1.0, "rope_type": "default"})
    assert (config.rotary_emb_base, config.rotary_pct, config.rope_scaling) == (500.0, 1.0, None)
    config = GPTNeoXConfig(rope_parameters={"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0})
    assert config.rope_scaling == {"rope_type": "linear", "factor": 2.0}


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(CONFIG_MAPPING)
    yield
    CONFIG_MAPPING.clear()
    CONFIG_MAPPING.update(before)


@pytest.mark.parametrize("family", [GPT2Config, GPTNeoConfig, GPTNeoXConfig])
def test_auto_reads_the_class_that_the_file_names(family: type[PretrainedConfig], tmp_path: Path) -> None:
    family(vocab_size=77).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is family
    assert (config.vocab_size, config.name_or_path) == (77, str(tmp_path))
    config, unused = AutoConfig.from_pretrained(tmp_path, return_unused_kwargs=True, vocab_size=78, wings=2)
    assert (config.vocab_size, unused) == (78, {"wings": 2})
    assert type(AutoConfig.for_model(family.model_type, 55)) is family


def test_auto_refuses_unknown_families_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UnsupportedError, match=r"'llama' .*gpt2, gpt_neo, gpt_neox"):
        AutoConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no model_type; expected one of gpt2, gpt_neo, gpt_neox"):
        AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="'bert'"):
        AutoConfig.for_model("bert")


def test_auto_never_runs_code(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)
    for trusts in (False, True):
        assert AutoConfig.from_pretrained(tmp_path, trust_remote_code=trusts) == GPT2Config()
    GPT2Config(auto_map={"AutoConfig": "configuration.Own"}).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)) is GPT2Config
    with pytest.raises(UnsupportedError, match=r"config\.json has code of its own .* never runs code"):
        AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    with pytest.raises(TypeError, match="from_pretrained"):
        AutoConfig()


@pytest.mark.usefixtures("registry")
def test_register_adds_a_family(tmp_path: Path) -> None:
    class Tiny(GPT2Config):
        model_type = "tiny"

    AutoConfig.register("tiny", Tiny)
    AutoConfig.register("tiny", Tiny)
    Tiny(n_layer=1).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is Tiny
    with pytest.raises(ConfigError, match="model_type='gpt2' is taken by GPT2Config"):
        AutoConfig.register("gpt2", type("Other", (GPT2Config,), {}))
    with pytest.raises(ConfigError, match="not a PretrainedConfig with model_type='small'"):
        AutoConfig.register("small", Tiny)


ODD_VALUES = [None, 0, -1, 2.5, float("inf"), "x", True, [], ["a"], {}, {"a": 1}, {"1": []}, {"1": 2}, [[["local"], 2]]]
ODD_KEYS = ["num_labels", "torch_dtype", "attn_implementation", "rope_parameters", "rope_theta", "model_type"]
ODD_KEYS += ["use_return_dict", "attribute_map", "positional_fields", "validate", "self", "cls", "__dict__"]


@pytest.mark.parametrize("family", [GPT2Config, GPTNeoConfig, GPTNeoXConfig])
def test_no_content_of_a_file_leads_to_anything_but_a_config_or_a_clear_error(
    family: type[PretrainedConfig],
) -> None:
    for key in [*family().to_dict(), *ODD_KEYS]:
        for value in ODD_VALUES:
            try:
                config = family.from_dict({key: value})
            except (ConfigError, UnsupportedError):
                continue
            assert family.from_dict(config.to_dict()) == config
