"""GenerationConfig: wrong options are named, files are whole, updates are all or nothing."""

import copy
import inspect
import json
import pickle
import subprocess
import sys
import warnings

import pytest
import torch

from gptrio import (
    CompileConfig,
    GenerationConfig,
    GenerationMode,
    GPT2LMHeadModel,
    GptrioWarning,
    OptionError,
    PhrasalConstraint,
)
from gptrio.errors import CheckpointError, CheckpointFormatError, CheckpointNotFoundError
from gptrio.generation.generate import generate
from gptrio.generation.options.max_length import settle_lengths
from gptrio.generation.options.schema import GENERATE_ARGUMENTS
from gptrio.generation.prompt import Prompt
from gptrio.generation.stopping import build_stopping
from gptrio.testing.tiny import tiny_config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streamer": None}, "'streamer' is an argument of generate"),
        ({"num_beams": "4"}, "num_beams='4' has the wrong type; expected int"),
        ({"num_beams": True}, "num_beams=True has the wrong type"),
        ({"do_sample": 1}, "do_sample=1 has the wrong type; expected bool"),
        ({"bad_words_ids": [1, 2]}, "bad_words_ids=.* has the wrong type"),
        ({"eos_token_id": 1.5}, "eos_token_id=1.5 has the wrong type"),
        ({"top_p": 1.5}, "top_p=1.5 is out of range; expected a number at least 0 and at most 1"),
        ({"top_p": float("nan")}, "top_p=nan is out of range"),
        ({"temperature": -1.0}, "temperature=-1.0 is out of range; expected a number at least 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 is out of range; expected a number above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 is out of range; expected a number at least 1"),
        ({"early_stopping": "soon"}, "early_stopping='soon' is not known; expected one of"),
        ({"cache_implementation": "magic"}, "cache_implementation='magic' is not known"),
        ({"num_assistant_tokens_schedule": "random"}, "num_assistant_tokens_schedule='random'"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 would be 2 copies"),
        ({"num_return_sequences": 3, "num_beams": 2}, "num_return_sequences=3 is more than num_beams=2"),
        ({"num_beams": 3, "num_beam_groups": 2, "diversity_penalty": 1.0}, "num_beams=3 is not a multiple"),
        ({"num_beams": 4, "num_beam_groups": 2}, "diversity_penalty must be above 0"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "do_sample": True}, "does not sample"),
        ({"num_beams": 4, "force_words_ids": [[1]], "do_sample": True}, "constrained beam search .* does not sample"),
        ({"num_beams": 4, "force_words_ids": [[1]], "num_beam_groups": 2}, "has no groups"),
        ({"dola_layers": "mid"}, "dola_layers='mid' is not known"),
        ({"sequence_bias": {"(1, x)": 2.0}}, "sequence_bias has the key '\\(1, x\\)'"),
    ],
    ids=str,
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(OptionError, match=message):
        GenerationConfig(**options)
    config = GenerationConfig(max_length=33)
    before = config.to_dict()
    if "streamer" in options:
        assert config.update(**options) == options
    else:
        with pytest.raises(OptionError, match=message):
            config.update(max_length=44, **options)
    assert config.to_dict() == before


def test_misspelt_names_are_kept_with_a_warning():
    with pytest.warns(GptrioWarning, match="did you mean 'temperature'"):
        assert GenerationConfig(temprature=0.5).temprature == 0.5
    config = GenerationConfig()
    with pytest.warns(GptrioWarning, match="did you mean 'temperature'"):
        config.tempurature = 0.5
    with pytest.raises(AttributeError, match="did you mean 'temperature'"):
        _ = config.temperatur


def test_update_returns_what_is_no_option():
    config = GenerationConfig()
    assert config.update(num_beams=5, attention_mask=7) == {"attention_mask": 7}
    assert config.num_beams == 5


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"temperature": 0.5, "top_k": 3}, "temperature=0.5, top_k=3 without do_sample=True"),
        ({"length_penalty": 2.0}, "length_penalty=2.0 without num_beams > 1"),
        ({"num_beams": 2, "diversity_penalty": 0.5}, "diversity_penalty=0.5 without num_beam_groups > 1"),
        ({"use_cache": False, "cache_implementation": "static"}, "cache_implementation='static' with use_cache=False"),
        ({"output_scores": True}, "output_scores=True without return_dict_in_generate=True"),
        ({"pad_token_id": -1}, "pad_token_id=-1"),
        ({"constraints": [PhrasalConstraint([1])]}, "constraints without num_beams > 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),  # the same in every process
)
def test_options_without_effect_give_one_warning(options, phrase, tmp_path):
    with pytest.warns(GptrioWarning, match="have no effect") as caught:
        config = GenerationConfig(**options)
    assert len(caught) == 1
    assert phrase in str(caught[0].message)
    with pytest.warns(GptrioWarning, match="have no effect"):
        config.validate()
    with pytest.raises(OptionError, match="have no effect"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": None, "top_p": None, "top_k": None}, {"do_sample": True, "top_k": 0, "temperature": 1}],
    ids=str,
)
def test_nothing_wrong_gives_no_warning(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GenerationConfig(**options).validate(strict=True)


def test_assisted_generation_is_ignored_for_beams_with_a_warning():
    config = GenerationConfig(num_beams=2, prompt_lookup_num_tokens=3)
    with pytest.warns(GptrioWarning, match="assisted_generation works with greedy search and sampling only"):
        assert config.get_generation_mode() is GenerationMode.BEAM_SEARCH
    assert GenerationConfig().get_generation_mode(assistant_model=object()) is GenerationMode.ASSISTED_GENERATION


def test_unknown_keys_of_a_file_survive(tmp_path):
    content = {"top_k": 4, "do_sample": True, "made_by": "someone", "check": 3}
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    with pytest.warns(GptrioWarning, match="check=3 is left out, because GenerationConfig has a method"):
        config = GenerationConfig.from_pretrained(tmp_path)
    assert config.made_by == "someone"
    config.validate()
    config.update(made_by="me")
    again = pickle.loads(pickle.dumps(copy.deepcopy(config)))
    again.save_pretrained(tmp_path / "copy")
    written = json.loads((tmp_path / "copy" / "generation_config.json").read_text())
    assert written == {"top_k": 4, "do_sample": True, "made_by": "me", "transformers_version": "4.56.2"}
    assert again == config
    assert again != GenerationConfig(top_k=4, do_sample=True, made_by="someone")


def test_from_pretrained_takes_overrides_and_returns_the_rest(tmp_path):
    GenerationConfig(max_new_tokens=3).save_pretrained(tmp_path, config_file_name="other.json")
    config, unused = GenerationConfig.from_pretrained(
        tmp_path, "other.json", max_new_tokens=5, foo=False, return_unused_kwargs=True
    )
    assert config.max_new_tokens == 5
    assert (config.foo, unused) == (False, {})


def test_broken_files_are_refused(tmp_path):
    path = tmp_path / "generation_config.json"
    with pytest.raises(CheckpointNotFoundError, match="generation_config"):
        GenerationConfig.from_pretrained(tmp_path)
    path.write_text('{"top_k": ')
    with pytest.raises(CheckpointFormatError, match="generation_config"):
        GenerationConfig.from_pretrained(tmp_path)
    path.write_text("[1, 2]")
    with pytest.raises(CheckpointFormatError, match="list"):
        GenerationConfig.from_pretrained(tmp_path)
    path.write_text('{"top_k": "many"}')
    with pytest.raises(OptionError, match="top_k='many'"):
        GenerationConfig.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a file"):
        GenerationConfig().save_pretrained(path)


def test_what_json_cannot_hold_leaves_no_file(tmp_path):
    config = GenerationConfig(num_beams=2, constraints=[PhrasalConstraint([1])])
    with pytest.raises(OptionError, match="cannot be written to a file"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    assert "PhrasalConstraint" in repr(config)


def test_tensors_become_plain_values():
    import torch

    config = GenerationConfig(eos_token_id=torch.tensor([1, 2]), pad_token_id=torch.tensor(3))
    assert (config.eos_token_id, config.pad_token_id) == ([1, 2], 3)
    assert GenerationConfig(cache_config={"dtype": torch.float16}).to_json_string().count('"float16"') == 1


def test_compile_options_stay_on_this_machine():
    config = GenerationConfig(compile_config={"mode": "default"})
    assert config.compile_config == CompileConfig(mode="default")
    assert "compile_config" not in config.to_dict()


def test_equal_configs_hash_alike():
    assert hash(GenerationConfig(max_new_tokens=3)) == hash(GenerationConfig(max_new_tokens=3))
    assert GenerationConfig(max_new_tokens=3) != GenerationConfig()


def test_options_load_no_torch():
    code = "import sys; from gptrio import GenerationConfig, WatermarkingConfig; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("tokens", [2**63, [1, -(2**70)]])
def test_an_end_token_past_all_tensors_is_named(tokens):
    with pytest.raises(OptionError, match="must be a token id"):
        build_stopping(GenerationConfig(eos_token_id=tokens))


def test_the_arguments_of_generate_are_listed_beside_the_options():
    parameters = inspect.signature(generate).parameters
    assert set(GENERATE_ARGUMENTS) == set(parameters) - {"model", "kwargs"}
    with pytest.raises(OptionError, match="no option 'steamer'; did you mean 'streamer'"):
        GPT2LMHeadModel(tiny_config("gpt2")).generate(torch.tensor([[1]]), steamer=None)


def test_lengths_are_settled_in_a_config_of_their_own():
    model = GPT2LMHeadModel(tiny_config("gpt2"))
    prompt = Prompt(torch.tensor([[1, 2, 3]]))
    config = GenerationConfig(max_new_tokens=4, min_new_tokens=2)
    same_prompt, settled = settle_lengths(model, prompt, config, {}, "error")
    assert same_prompt is prompt
    assert (settled.max_length, settled.min_length) == (7, 5)
    assert (config.max_length, config.min_length) == (20, 0)
