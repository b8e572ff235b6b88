"""What every configuration does: fields, aliases, labels, errors. One row per family."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gptrio.config import GPT2Config, GPTNeoConfig, GPTNeoXConfig, PretrainedConfig
from gptrio.errors import (
    ConfigError,
    GptrioWarning,
)

FAMILIES = pytest.mark.parametrize("family", [GPT2Config, GPTNeoConfig, GPTNeoXConfig])
SIZES = {"hidden_size": 24, "num_attention_heads": 3}


@FAMILIES
def test_aliases_read_and_write_the_same_field(family: type[PretrainedConfig]) -> None:
    config = family(**SIZES)
    for alias, name in family.attribute_map.items():
        assert getattr(config, alias) == getattr(config, name)
        setattr(config, alias, 1)
        assert getattr(config, name) == 1


@FAMILIES
def test_unknown_attribute_names_class_and_field(family: type[PretrainedConfig]) -> None:
    with pytest.raises(AttributeError, match=f"{family.__name__} has no field 'wings'"):
        _ = family().wings
    assert not hasattr(family(), "wings")


def test_positional_arguments_in_documented_order() -> None:
    config = GPT2Config(100, 32, 24, 2, 3, 7)
    assert (config.vocab_size, config.n_positions, config.n_embd) == (100, 32, 24)
    assert (config.n_layer, config.n_head, config.n_inner) == (2, 3, 7)
    with pytest.raises(TypeError, match="by position and by keyword"):
        GPT2Config(100, vocab_size=100)
    with pytest.raises(TypeError, match="at most 23"):
        GPT2Config(*range(1, 30))


def test_signature_shows_the_fields() -> None:
    parameters = inspect.signature(GPT2Config).parameters
    assert list(parameters)[:3] == ["vocab_size", "n_positions", "n_embd"]
    assert parameters["n_embd"].default == 768
    assert parameters["pad_token_id"].kind is inspect.Parameter.KEYWORD_ONLY


def test_two_spellings_must_agree() -> None:
    assert GPT2Config(n_embd=24, hidden_size=24, n_head=2).n_embd == 24
    with pytest.raises(ConfigError, match="n_embd=24 and hidden_size=48 disagree"):
        GPT2Config(n_embd=24, hidden_size=48)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_embd": 0}, r"GPT2Config: n_embd=0 is not possible; expected an integer at least 1 and at most 16777216"),
        ({"n_layer": -1}, r"n_layer=-1"),
        ({"architectures": 3}, r"architectures=3 .* a list of names of classes or None"),
        ({"n_head": 2.5}, r"n_head=2\.5"),
        ({"vocab_size": True}, r"vocab_size=True"),
        ({"n_inner": 0}, r"n_inner=0 .* at least 1 .*or None"),
        ({"n_embd": 10, "n_head": 3}, r"n_embd=10 is not divisible by n_head=3"),
        ({"resid_pdrop": 1.5}, r"resid_pdrop=1\.5 .* a number at least 0 and at most 1"),
        ({"attn_pdrop": float("nan")}, r"attn_pdrop=nan"),
        ({"layer_norm_epsilon": -1}, r"layer_norm_epsilon=-1"),
        ({"activation_function": 3}, r"activation_function=3 .* a string"),
        ({"summary_type": "attn"}, r"summary_type='attn' .* 'last', 'first', 'mean', 'cls_index'"),
        ({"use_cache": "yes"}, r"use_cache='yes' .* True or False"),
        ({"eos_token_id": "<eos>"}, r"eos_token_id='<eos>'"),
        ({"problem_type": "guess"}, r"problem_type='guess' .* 'regression'"),
        ({"dtype": "float12"}, r"dtype='float12' .* float32"),
        ({"num_labels": 0}, r"num_labels=0"),
        ({"id2label": [1]}, r"id2label=\[1\]"),
        ({"id2label": {"x": "a"}}, r"id2label=.* integer keys"),
        ({"label2id": 3}, r"label2id=3"),
        (
            {"attn_implementation": 7},
            r"attn_implementation=7 .* the name of an attention back end or None",
        ),  # models know which
        ({"model_type": "gpt_neo"}, r"GPT2Config is for model_type='gpt2', but the configuration has 'gpt_neo'"),
        ({"to_dict": 1}, r"'to_dict', which the class uses"),
    ],
)
def test_impossible_value_names_field_value_and_what_is_accepted(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPT2Config(**values)


def test_update_validates() -> None:
    config = GPT2Config()
    config.update({"hidden_size": 96, "note": "x"})
    assert (config.n_embd, config.note) == (96, "x")
    with pytest.raises(ConfigError, match="n_layer"):
        config.update({"num_hidden_layers": -1})


def test_labels_stay_in_step() -> None:
    assert GPT2Config(num_labels=3).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    config = GPT2Config(id2label={"0": "no", "1": "yes"})
    assert (config.num_labels, config.id2label, config.label2id) == (2, {0: "no", 1: "yes"}, {"no": 0, "yes": 1})
    assert GPT2Config(label2id={"a": 0, "b": 1, "c": 2}).id2label == {0: "a", 1: "b", 2: "c"}
    config.id2label = {0: "x"}
    assert (config.num_labels, config.label2id) == (1, {"x": 0})
    config.num_labels = 2
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1}
    with pytest.warns(GptrioWarning, match="num_labels=4 is ignored: id2label names 1 classes"):
        assert GPT2Config(num_labels=4, id2label={0: "a"}).num_labels == 1


def test_overrides_of_labels() -> None:
    stored = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    assert GPT2Config.from_dict(stored, num_labels=3).id2label[2] == "LABEL_2"
    assert GPT2Config.from_dict(stored, num_labels=2).id2label == {0: "a", 1: "b"}
    assert GPT2Config.from_dict(stored, id2label={0: "x", 1: "y", 2: "z"}).label2id == {"x": 0, "y": 1, "z": 2}
    with pytest.raises(ConfigError, match="num_labels=2 and an id2label of 1"):
        GPT2Config.from_dict(stored, num_labels=2, id2label={0: "x"})


def test_flags_for_the_forward_pass() -> None:
    assert GPT2Config().use_return_dict
    assert not GPT2Config(return_dict=False).use_return_dict
    assert not GPT2Config(torchscript=True).use_return_dict
    assert GPT2Config().get_text_config(decoder=True).model_type == "gpt2"


def test_pruned_heads_get_integer_keys() -> None:
    assert GPT2Config.from_dict({"pruned_heads": {"0": [1, 2]}}).pruned_heads == {0: [1, 2]}


def test_plain_subclass_with_its_own_constructor(tmp_path: Path) -> None:
    class Custom(PretrainedConfig):
        model_type = "custom"
        attribute_map: ClassVar[dict[str, str]] = {"hidden_size": "width"}

        def __init__(self, width: int = 3, **kwargs: Any) -> None:
            self.width = width
            super().__init__(**kwargs)

    config = Custom(width=5, pad_token_id=1, note="n")
    assert (config.hidden_size, config.pad_token_id, config.note) == (5, 1, "n")
    assert Custom.from_dict(config.to_dict()) == config
    stored = GPT2Config(bos_token_id=3, n_embd=12).to_dict()
    config = Custom(**stored)
    assert (config.bos_token_id, config.n_embd, config.to_dict()["model_type"]) == (3, 12, "custom")
    GPT2Config(bos_token_id=3).save_pretrained(tmp_path)
    with pytest.warns(GptrioWarning, match="Custom is for model_type='custom', but the file has 'gpt2'"):
        assert Custom.from_pretrained(tmp_path).bos_token_id == 3


def test_import_is_light() -> None:
    code = "import sys, gptrio.config as c; c.GPT2Config(dtype='float16'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
