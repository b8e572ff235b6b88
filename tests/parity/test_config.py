"""Configurations against Transformers: same defaults, same dictionaries, same files, read both ways."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers

import gptrio
from gptrio.config import PretrainedConfig

NAMES = pytest.mark.parametrize("name", ["GPT2Config", "GPTNeoConfig", "GPTNeoXConfig"])
ROPE = {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0, "original_max_position_embeddings": 1024}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("GPT2Config", {"n_embd": 64, "n_head": 4, "n_inner": 100, "activation_function": "relu", "dtype": "float16"}),
    ("GPT2Config", {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "summary_type": "mean"}),
    ("GPT2Config", {"num_labels": 5, "problem_type": "regression", "pad_token_id": 3, "eos_token_id": [1, 2]}),
    ("GPT2Config", {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "tie_word_embeddings": False}),
    ("GPT2Config", {"n_ctx": 1024, "task_specific_params": {"x": {"max_length": 50}}, "gradient_checkpointing": False}),
    ("GPT2Config", {"add_cross_attention": True, "is_decoder": True, "max_length": 33, "do_sample": True}),
    ("GPT2Config", {"pruned_heads": {0: [1]}, "architectures": ["GPT2LMHeadModel"], "use_cache": False}),
    ("GPTNeoConfig", {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 4}),
    ("GPTNeoConfig", {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 99}),
    ("GPTNeoXConfig", {"hidden_size": 64, "num_attention_heads": 4, "rotary_pct": 1.0, "rotary_emb_base": 500}),
    ("GPTNeoXConfig", {"rope_scaling": {"type": "linear", "factor": 2.0}, "tie_word_embeddings": True}),
    ("GPTNeoXConfig", {"rope_scaling": ROPE, "attention_bias": False, "torch_dtype": "bfloat16"}),
]


def both(name: str) -> tuple[type[PretrainedConfig], Any]:
    return getattr(gptrio, name), getattr(transformers, name)


@NAMES
def test_positional_arguments_and_defaults(name: str) -> None:
    ours, theirs = both(name)
    expected = [p for p in inspect.signature(theirs).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    parameters = inspect.signature(ours).parameters
    assert list(ours.positional_fields) == [p.name for p in expected]
    assert [parameters[p.name].default for p in expected] == [p.default for p in expected]


@pytest.mark.parametrize(("name", "values"), [*CASES, ("GPT2Config", {}), ("GPTNeoConfig", {}), ("GPTNeoXConfig", {})])
def test_dictionaries_and_files_are_equal(name: str, values: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = both(name)
    mine, reference = ours(**values), theirs(**values)
    full = reference.to_dict()
    assert mine.to_dict() == full
    assert mine.to_json_string() == reference.to_json_string()
    for key in full:
        assert getattr(mine, key) == getattr(reference, key)


@pytest.mark.parametrize(("name", "values"), CASES)
def test_files_open_in_the_other_library(name: str, values: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = both(name)
    mine, reference = ours(**values), theirs(**values)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "max_length=33, do_sample=True in config.json", gptrio.GptrioWarning)
        mine.save_pretrained(tmp_path / "ours")
    reference.to_json_file(tmp_path / "theirs.json")
    assert theirs.from_pretrained(tmp_path / "ours").to_diff_dict() == reference.to_diff_dict()
    assert ours.from_pretrained(tmp_path / "theirs.json") == mine
    auto = gptrio.AutoConfig.from_pretrained(tmp_path / "ours")
    assert (type(auto), auto) == (ours, mine)
    reference.to_json_file(tmp_path / "full.json", use_diff=False)
    assert ours.from_pretrained(tmp_path / "full.json").to_diff_dict().items() >= mine.to_diff_dict().items()


LOADED: dict[str, dict[str, Any]] = {
    "plain": {},
    "generation": {"max_length": 33, "top_k": 7, "do_sample": True, "bad_words_ids": [[1]], "forced_eos_token_id": 3},
    "labels": {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}, "finetuning_task": "abc"},
    "number of labels": {"num_labels": 4, "problem_type": "multi_label_classification", "architectures": ["X"]},
    "dtype": {"dtype": "bfloat16", "output_attentions": True, "pruned_heads": {1: [0]}, "own": {"nested": [1, None]}},
    "tensorflow": {"use_bfloat16": True, "tf_legacy_loss": True},
}


@NAMES
@pytest.mark.parametrize("values", LOADED.values(), ids=LOADED)
def test_loaded_configurations_are_equal(name: str, values: dict[str, Any], tmp_path: Path) -> None:
    libraries, folders = (transformers, gptrio), [tmp_path / "theirs", tmp_path / "ours", tmp_path / "older"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of options of generate, from both
        for library, folder in zip(libraries, folders, strict=False):
            getattr(library, name)(**values).save_pretrained(folder)
        assert (folders[0] / "config.json").read_text() == (folders[1] / "config.json").read_text()
        older = json.loads((folders[0] / "config.json").read_text()) | {"transformers_version": "4.10.2"}
        older["torch_dtype"] = older.pop("dtype", "float16")
        folders[2].mkdir()
        (folders[2] / "config.json").write_text(json.dumps(older))
        for folder in folders:
            theirs, ours = (library.AutoConfig.from_pretrained(folder) for library in libraries)
            assert ours.to_dict() == theirs.to_dict()
            assert ours.to_diff_dict() == theirs.to_diff_dict()
            for use_diff in (True, False):
                assert ours.to_json_string(use_diff) == theirs.to_json_string(use_diff)
            for library, config in zip(libraries, (theirs, ours), strict=True):
                config.save_pretrained(tmp_path / library.__name__)
            texts = [(tmp_path / library.__name__ / "config.json").read_text() for library in libraries]
            assert texts[1] == texts[0]


@NAMES
def test_overrides_and_unused_keywords(name: str, tmp_path: Path) -> None:
    ours, theirs = both(name)
    ours().save_pretrained(tmp_path)
    arguments = {"vocab_size": 9, "num_labels": 3, "dtype": "float16", "wings": 2, "return_unused_kwargs": True}
    mine, unused = ours.from_pretrained(tmp_path, **arguments)
    reference, expected = theirs.from_pretrained(tmp_path, **arguments)
    assert json.loads(mine.to_json_string()) == json.loads(reference.to_json_string())
    assert unused == expected


@pytest.mark.parametrize(
    "versions",
    [["4.0.0"], ["4.9.1", "4.0.0", "42.0.0"], ["42.0.0"], ["4.56.2", "4.56.3"], []],
    ids=lambda versions: "-".join(versions) or "none",
)
def test_the_configuration_for_this_version_is_read(versions: list[str], tmp_path: Path) -> None:
    files = [f"config.{version}.json" for version in versions]
    config = transformers.GPT2Config(n_layer=1, configuration_files=[*files, "config.json", "x.4.0.0.json"])
    config.save_pretrained(tmp_path)
    for layers, file in enumerate(files, start=2):
        (tmp_path / file).write_text(json.dumps({**config.to_dict(), "n_layer": layers}))
    expected = transformers.AutoConfig.from_pretrained(tmp_path)
    for actual in (gptrio.AutoConfig.from_pretrained(tmp_path), gptrio.GPT2Config.from_pretrained(tmp_path)):
        assert (actual.n_layer, actual.configuration_files) == (expected.n_layer, expected.configuration_files)
    alone = [library.GPT2Config.from_pretrained(tmp_path / "config.json").n_layer for library in (gptrio, transformers)]
    assert alone == [1, 1]


def test_names_that_are_no_versioned_files_do_not_count(tmp_path: Path) -> None:
    gptrio.GPT2Config(n_layer=3).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    for listed in (
        ["config.../../4.0.0.json", "config." + "9" * 5000 + ".json", 4, None],
        "config.4.0.0.json",
        5,
        None,
    ):
        (tmp_path / "config.json").write_text(json.dumps({**content, "configuration_files": listed}))
        assert gptrio.AutoConfig.from_pretrained(tmp_path).n_layer == 3
    (tmp_path / "config.json").write_text(json.dumps({**content, "configuration_files": ["config.4.0.0.json"]}))
    with pytest.raises(gptrio.CheckpointNotFoundError, match=r"config\.4\.0\.0\.json"):
        gptrio.AutoConfig.from_pretrained(tmp_path)


def test_options_of_generate_are_saved_as_in_the_reference(tmp_path: Path) -> None:
    found = []
    for library in (transformers, gptrio):
        folder = tmp_path / library.__name__
        config = library.GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50, bos_token_id=1, eos_token_id=1)
        config.min_length, config.repetition_penalty = 3, 1.5
        with pytest.warns(UserWarning, match=r"min_length"):
            config.save_pretrained(folder / "config")
        model = library.GPT2LMHeadModel(library.GPT2Config(**config.to_dict()))
        model.generation_config = library.GenerationConfig(bos_token_id=1, eos_token_id=1, do_sample=True)
        with pytest.warns(UserWarning, match=r"min_length"):
            model.save_pretrained(folder / "model")
        backbone = library.GPT2Model(library.GPT2Config(**config.to_dict()))
        with pytest.warns(UserWarning, match=r"min_length"):
            backbone.save_pretrained(folder / "backbone")
        files = sorted(folder.glob("**/*.json"))
        found.append({str(file.relative_to(folder)): json.loads(file.read_text()) for file in files})
        assert model.config.min_length is None and model.generation_config.min_length == 3
    assert found[1] == found[0]
