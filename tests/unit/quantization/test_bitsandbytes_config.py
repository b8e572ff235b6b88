"""The options of bitsandbytes: defaults, checks, round trips."""

from __future__ import annotations

import json

import pytest
import torch

from gptrio.errors import GptrioWarning, OptionError
from gptrio.quantization import BitsAndBytesConfig


def test_defaults_are_the_documented_ones() -> None:
    config = BitsAndBytesConfig()
    assert config.quantization_method() is None and not config.is_quantizable()
    assert config.bnb_4bit_compute_dtype is torch.float32 and config.bnb_4bit_quant_storage is torch.uint8
    assert (config.bnb_4bit_quant_type, config.llm_int8_threshold) == ("fp4", 6.0)


def test_methods_have_their_names() -> None:
    assert BitsAndBytesConfig(load_in_8bit=True).quantization_method() == "llm_int8"
    assert BitsAndBytesConfig(load_in_4bit=True).quantization_method() == "fp4"
    assert BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4").quantization_method() == "nf4"


def test_dictionary_round_trip_keeps_every_field() -> None:
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype="bfloat16",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_storage=torch.float16,
        llm_int8_skip_modules=["score"],
    )
    fields = json.loads(json.dumps(config.to_dict()))
    assert fields["bnb_4bit_compute_dtype"] == "bfloat16" and fields["quant_method"] == "bitsandbytes"
    assert BitsAndBytesConfig.from_dict(fields).to_dict() == config.to_dict()
    assert BitsAndBytesConfig.from_dict(config.to_diff_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "options",
    [
        {"load_in_4bit": True, "load_in_8bit": True},
        {"load_in_4bit": "yes"},
        {"llm_int8_threshold": "6"},
        {"llm_int8_skip_modules": "lm_head"},
        {"bnb_4bit_quant_type": "nf5"},
        {"bnb_4bit_compute_dtype": "floaty"},
        {"bnb_4bit_quant_storage": "int64"},
    ],
    ids=str,
)
def test_impossible_options_are_refused(options) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        BitsAndBytesConfig(**options)


def test_unknown_options_are_named() -> None:
    with pytest.warns(GptrioWarning, match="bnb_5bit"):
        BitsAndBytesConfig(bnb_5bit=True)
