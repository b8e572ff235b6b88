"""Watermark options as dictionaries and files, and how options build their processors."""

import json

import pytest
import torch

import gptrio
from gptrio import GenerationConfig
from gptrio.generation.processors.build import build_processors

GREEN = gptrio.WatermarkingConfig(bias=3.0, seeding_scheme="selfhash", context_width=2)
SYNTHID = gptrio.SynthIDTextWatermarkingConfig(ngram_len=3, keys=[5, 6], sampling_table_size=64)


@pytest.mark.parametrize("config", [GREEN, SYNTHID], ids=["green", "synthid"])
def test_dictionary_and_file_hold_every_option(config, tmp_path):
    assert dict(iter(config)) == config.to_dict()
    assert type(config).from_dict(config.to_dict()) == config
    config.to_json_file(tmp_path / "watermark.json")
    assert json.loads((tmp_path / "watermark.json").read_text()) == config.to_dict()
    assert GenerationConfig(watermarking_config=config.to_dict()).watermarking_config == config


def test_update_sets_what_exists():
    config = gptrio.WatermarkingConfig()
    config.update(bias=1.0, unknown=3)
    assert config == gptrio.WatermarkingConfig(bias=1.0)


@pytest.mark.parametrize(
    ("config", "processor"),
    [(GREEN, gptrio.WatermarkLogitsProcessor), (SYNTHID, gptrio.SynthIDTextWatermarkLogitsProcessor)],
    ids=["green", "synthid"],
)
def test_watermark_comes_after_truncation_and_before_normalisation(config, processor):
    options = GenerationConfig(watermarking_config=config, do_sample=True, renormalize_logits=True)
    built = build_processors(options, prompt_length=3, vocab_size=30)
    assert [type(item) for item in built] == [gptrio.TopKLogitsWarper, processor, gptrio.LogitNormalization]


def test_guidance_comes_first_and_prefixes_follow_beams():
    asked = []

    def allowed(prompt, ids):
        asked.append(prompt)
        return [0]

    options = GenerationConfig(guidance_scale=1.5, num_beams=2, repetition_penalty=1.2)
    built = build_processors(
        options, prompt_length=1, vocab_size=4, model=lambda *args: None, prefix_allowed_tokens_fn=allowed
    )
    names = ["UnbatchedClassifierFreeGuidance", "RepetitionPenalty", "PrefixConstrained"]
    assert [type(item).__name__.removesuffix("LogitsProcessor") for item in built] == names
    built[2](torch.zeros(4, 1, dtype=torch.long), torch.zeros(4, 4))
    assert asked == [0, 0, 1, 1]


def test_detector_needs_a_depth():
    with pytest.raises(gptrio.ConfigError, match="watermarking_depth is None"):
        gptrio.BayesianDetectorModel(gptrio.BayesianDetectorConfig())


def test_detector_remembers_what_it_was_trained_for(tmp_path):
    config = gptrio.BayesianDetectorConfig(watermarking_depth=2)
    config.set_detector_information("gptrio/stdlib-gpt2", SYNTHID.to_dict())
    gptrio.BayesianDetectorModel(config).save_pretrained(tmp_path)
    read = gptrio.BayesianDetectorModel.from_pretrained(tmp_path).config
    assert (read.model_name, read.watermarking_config) == ("gptrio/stdlib-gpt2", SYNTHID.to_dict())
