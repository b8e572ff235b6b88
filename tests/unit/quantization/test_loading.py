"""Quantizing while a checkpoint is loaded, and loading what was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gptrio
from gptrio import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel, OptionError
from gptrio.quantization import Int8Config, quantize

CONFIG = GPT2Config(vocab_size=96, n_positions=32, n_embd=64, n_layer=2, n_head=4, pad_token_id=0)
IDS = torch.arange(1, 21).view(2, 10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    GPT2LMHeadModel(CONFIG).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


@pytest.mark.parametrize(("name", "bound"), [("int8", 0.02), ("int4", 0.3)])
def test_a_model_quantized_on_load_is_near_and_survives_its_files(folder: Path, name: str, bound: float) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder)
    quantized = AutoModelForCausalLM.from_pretrained(folder, load_in=name)
    expected, logits = plain(IDS).logits, quantized(IDS).logits
    assert 0 < (logits - expected).norm() / expected.norm() < bound
    assert quantized.get_memory_footprint() < 0.5 * plain.get_memory_footprint()
    quantized.save_pretrained(folder.parent / name)
    again = AutoModelForCausalLM.from_pretrained(folder.parent / name)
    torch.testing.assert_close(again(IDS).logits, logits, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"load_in_4bit": True}, {"load_in_8bit": True}])
def test_short_forms_of_bitsandbytes_quantize(folder: Path, options: dict[str, Any]) -> None:
    pytest.importorskip("bitsandbytes")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    expected = plain(IDS).logits
    assert model.get_memory_footprint() < plain.get_memory_footprint()
    assert 0 < (model(IDS).logits.float() - expected).norm() / expected.norm() < 0.3


@pytest.mark.filterwarnings("ignore:.*drawn at random")
def test_heads_are_quantized_too(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder, load_in="int8", num_labels=64)
    assert model(IDS).logits.shape == (2, 64)
    assert model.transformer.h[0].attn.c_attn.weight.dtype == torch.int8


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_codes_go_to_the_device_asked_for(folder: Path, name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, load_in=name, device_map="meta")
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}


def test_an_unknown_method_is_refused(folder: Path) -> None:
    with pytest.raises(OptionError, match="int3"):
        AutoModelForCausalLM.from_pretrained(folder, load_in="int3")


@pytest.mark.parametrize("kind", ["DoubleHeadsModel", "ForSequenceClassification", "ForQuestionAnswering"])
def test_small_heads_of_a_class_stay_in_full_precision(kind: str) -> None:
    model = getattr(gptrio, f"GPT2{kind}")(CONFIG)
    small = {name for name in model.full_precision_modules if hasattr(model, name)}
    quantize(model, Int8Config())
    plain = {name.split(".")[0] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    assert plain == small != set()
