"""GenerationConfig against transformers 4.56.2: fields, defaults, modes, files both ways."""

import dataclasses
import json
import warnings

import pytest

import gptrio
from gptrio import GenerationConfig

transformers = pytest.importorskip("transformers")

OPTIONS = [
    {},
    {"max_new_tokens": 7, "do_sample": True, "temperature": 0.5, "top_k": 3, "eos_token_id": [1, 2]},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 2},
    {"num_beams": 4, "early_stopping": "never", "length_penalty": 0.3, "force_words_ids": [[1, 2], [3]]},
    {"num_beams": 2, "do_sample": True},
    {"num_beams": 3, "force_words_ids": [[[1, 2], [3]]]},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"prompt_lookup_num_tokens": 3},
    {"assistant_early_exit": 2, "do_sample": True},
    {"dola_layers": "low"},
    {"dola_layers": [1, 3], "do_sample": True},
    {"bad_words_ids": [[1], [2, 3]], "suppress_tokens": [4], "forced_eos_token_id": [5, 6]},
    {"sequence_bias": [[[1, 2], 0.5], [[3], -1.0]], "exponential_decay_length_penalty": (3, 1.5)},
    {"cache_implementation": "static", "stop_strings": ["a", "b"], "max_time": 3.5},
]


def theirs(**options):
    return transformers.GenerationConfig(**options)


def test_every_field_and_default_is_upstreams():
    expected = theirs().to_dict()
    expected.pop("transformers_version")
    expected.pop("_from_model_config")
    assert GenerationConfig().to_dict() == expected
    names = {field.name for field in dataclasses.fields(GenerationConfig)}
    assert names == set(expected) | {"compile_config"}


def test_every_field_says_what_it_does():
    for field in dataclasses.fields(GenerationConfig):
        assert field.metadata["help"].endswith((".", ")", "}")), field.name


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_modes_are_upstreams(options):
    assert GenerationConfig(**options).get_generation_mode().value == theirs(**options).get_generation_mode().value


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_files_of_ours_open_upstream(options, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        GenerationConfig(**options).to_json_file(tmp_path / "generation_config.json")
    read = transformers.GenerationConfig.from_pretrained(tmp_path)
    for name, value in options.items():
        assert getattr(read, name) == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_files_of_upstream_open_here(options, tmp_path):
    theirs(**options).to_json_file(tmp_path / "generation_config.json")
    read = GenerationConfig.from_pretrained(tmp_path)
    for name, value in options.items():
        assert getattr(read, name) == (list(value) if isinstance(value, tuple) else value)


def test_tuple_keys_of_sequence_bias_survive_upstreams_file(tmp_path):
    theirs(sequence_bias={(1, 2): 0.5, (3,): -1.0}).to_json_file(tmp_path / "generation_config.json")
    assert GenerationConfig.from_pretrained(tmp_path).sequence_bias == {(1, 2): 0.5, (3,): -1.0}


@pytest.mark.parametrize("name", ["WatermarkingConfig", "SynthIDTextWatermarkingConfig"])
def test_watermark_options_travel(name, tmp_path):
    arguments = {"ngram_len": 5, "keys": [1, 2, 3]} if name.startswith("Synth") else {"bias": 1.5, "context_width": 2}
    theirs(watermarking_config=getattr(transformers, name)(**arguments)).save_pretrained(tmp_path)
    read = GenerationConfig.from_pretrained(tmp_path).watermarking_config
    assert read == getattr(gptrio, name)(**arguments)
    assert read.to_dict() == getattr(transformers, name)(**arguments).to_dict()


def test_released_file_of_gpt2(tmp_path):
    content = {"_from_model_config": True, "bos_token_id": 50256, "eos_token_id": 50256,
               "transformers_version": "4.26.0.dev0"}  # fmt: skip
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    config = GenerationConfig.from_pretrained(tmp_path)
    config.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text()) == content
    assert config.eos_token_id == transformers.GenerationConfig.from_pretrained(tmp_path).eos_token_id


def test_from_model_config():
    arguments = {"eos_token_id": 3, "bos_token_id": 2, "output_hidden_states": True}
    ours = GenerationConfig.from_model_config(gptrio.GPT2Config(**arguments))
    expected = transformers.GenerationConfig.from_model_config(transformers.GPT2Config(**arguments)).to_dict()
    expected.pop("transformers_version")
    assert ours.to_dict() == expected


def test_json_text_is_upstreams():
    options = {"top_k": 3, "do_sample": True, "eos_token_id": 5}
    assert GenerationConfig(**options).to_json_string(ignore_metadata=True) == theirs(**options).to_json_string(
        ignore_metadata=True
    )
