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
    assert GenerationConfig().to_dict() == expected
    names = {field.name for field in dataclasses.fields(GenerationConfig)}
    assert names == set(expected) - {"transformers_version", "_from_model_config"} | {"compile_config"}


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
    reference = transformers.GenerationConfig.from_pretrained(tmp_path)
    reference.save_pretrained(tmp_path / "reference")
    texts = [(tmp_path / name / "generation_config.json").read_text() for name in ("again", "reference")]
    assert texts[0] == texts[1]
    assert config.transformers_version == reference.transformers_version == "4.26.0.dev0"


def test_from_model_config():
    arguments = {"eos_token_id": 3, "bos_token_id": 2, "output_hidden_states": True}
    ours = GenerationConfig.from_model_config(gptrio.GPT2Config(**arguments))
    expected = transformers.GenerationConfig.from_model_config(transformers.GPT2Config(**arguments)).to_dict()
    assert ours.to_dict() == expected


@pytest.mark.parametrize("options", [{"top_k": 3, "do_sample": True, "made_by": ["me", 2]}, {"stop_strings": "a"}])
def test_json_text_is_upstreams(options):
    for arguments in ({}, {"ignore_metadata": True}, {"use_diff": False}):
        assert GenerationConfig(**options).to_json_string(**arguments) == theirs(**options).to_json_string(**arguments)
    assert GenerationConfig(**options).to_diff_dict() == theirs(**options).to_diff_dict()


def results(library, folder):
    """What happens to names that are no options, in every way that a configuration is made or changed."""
    cls, told = library.GenerationConfig, []
    for content in ({"made_by": 1, "num_beams": 2}, {"_from_model_config": True, "made_by": 1}):
        (folder / "generation_config.json").write_text(json.dumps(content))
        read, unused = cls.from_pretrained(folder, wings=2, max_time=3, return_unused_kwargs=True)
        again, rest = cls.from_dict(content, wings=2, max_time=3, return_unused_kwargs=True)
        left = again.update(wings=4, tail=5, max_time=6)
        told += [config.to_diff_dict() for config in (read, again, cls.from_pretrained(folder, wings=2))]
        told += [unused, rest, left, cls.from_dict(content, wings=2) == cls.from_dict(content)]
    kept = cls(made_by=1)
    kept.later = {"dtype": "x"}
    return [*told, kept.to_dict(), kept.update(made_by=2, later=3, nothing=4), kept.made_by, sorted(vars(kept))]


def test_names_that_are_no_options(tmp_path):
    mine, expected = results(gptrio, tmp_path), results(transformers, tmp_path)
    expected[-1].append("_original_object_hash")
    assert mine[:-1] == expected[:-1]
    assert mine[-1] == sorted(expected[-1])


EFFECTS = [
    {"temperature": 0.5}, {"top_p": 0.5}, {"min_p": 0.1}, {"typical_p": 0.5}, {"top_k": 3}, {"epsilon_cutoff": 0.1},
    {"eta_cutoff": 0.1}, {"early_stopping": True}, {"num_beam_groups": 2}, {"diversity_penalty": 0.5},
    {"length_penalty": 2.0}, {"constraints": []}, {"pad_token_id": -1}, {"use_cache": False, "cache_config": {"a": 1}},
    {"use_cache": False, "cache_implementation": "static"}, {"output_scores": True}, {"output_logits": True},
    {"do_sample": True, "temperature": 0.5, "top_k": 3}, {"do_sample": True, "temperature": 0.0}, {"min_length": 30},
    {"min_new_tokens": 5, "max_new_tokens": 3}, {"num_beams": 2, "length_penalty": 2.0}, {"temperature": None},
    {"return_dict_in_generate": True, "output_scores": True}, {"num_return_sequences": 2}, {"max_new_tokens": 0},
    {"num_beams": 2, "num_return_sequences": 3}, {"cache_implementation": "magic"}, {"early_stopping": "soon"},
    {"num_beams": 4, "num_beam_groups": 2}, {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    {"num_beams": 3, "num_beam_groups": 2, "diversity_penalty": 1.0}, {"logits_processor": []}, {"streamer": None},
    {"num_beams": 4, "force_words_ids": [[1]], "do_sample": True}, {"num_beams": 4, "force_words_ids": [[1]]},
]  # fmt: skip


def made(library, options):
    """Whether a configuration is refused, and whether it is warned of; and the same of saving it."""
    told = []
    for strict in (False, True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                config = library.GenerationConfig(**options)
                caught.clear()
                config.validate(strict=strict)
            except ValueError:
                told.append("refused")
            else:
                told.append(bool(caught))
    return told


@pytest.mark.parametrize("options", EFFECTS, ids=str)
def test_what_is_refused_and_warned_of_is_upstreams(options, monkeypatch):
    def warn_once(message, *args, **kwargs):
        warnings.warn(message, stacklevel=1)

    monkeypatch.setattr(transformers.generation.configuration_utils.logger, "warning_once", warn_once)
    assert made(gptrio, options) == made(transformers, options)


@pytest.mark.parametrize("name", ["num_beam_groups", "token_healing", "is_assistant", "num_assistant_tokens"])
def test_none_means_the_default(name):
    assert theirs(**{name: None}).get_generation_mode().value == "greedy_search"
    config = GenerationConfig(**{name: None})
    assert config == GenerationConfig()
    config.update(**{name: None})
    assert config.get_generation_mode().value == "greedy_search"


def test_whole_floats_count_as_integers():
    config = GenerationConfig(max_new_tokens=5.0, do_sample=True, top_k=3.0, eos_token_id=7.0)
    assert repr((config.max_new_tokens, config.top_k, config.temperature, config.eos_token_id)) == "(5, 3, 1.0, 7)"
