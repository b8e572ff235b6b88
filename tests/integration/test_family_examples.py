"""The GPT-Neo and GPT-NeoX examples of the Transformers documentation, on tiny models with random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import gptrio
from gptrio import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Tokenizer,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXModel,
    GPTNeoXTokenizerFast,
)
from gptrio.testing import byte_tokenizer, tiny_config

UNICORNS = "In a shocking finding, scientists discovered a herd of unicorns"


@pytest.fixture(scope="module")
def neo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt-neo")
    GPTNeoForCausalLM(tiny_config("gpt_neo", max_position_embeddings=128)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt-neox")
    GPTNeoXForCausalLM(tiny_config("gpt_neox", max_position_embeddings=128)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "tokenizer_class": "GPTNeoXTokenizer"}))
    return folder


def test_gpt_neo_configuration() -> None:
    configuration = GPTNeoConfig()
    assert (configuration.hidden_size, configuration.num_layers, configuration.window_size) == (2048, 24, 256)
    configuration = tiny_config("gpt_neo")
    assert GPTNeoModel(configuration).config is configuration


def test_gpt_neox_configuration() -> None:
    configuration = GPTNeoXConfig()
    assert (configuration.hidden_size, configuration.num_hidden_layers, configuration.rotary_pct) == (6144, 44, 0.25)
    configuration = tiny_config("gpt_neox")
    assert GPTNeoXModel(configuration).config is configuration


def test_gpt_neo_generates(neo: Path) -> None:
    model = GPTNeoForCausalLM.from_pretrained(neo)
    tokenizer = GPT2Tokenizer.from_pretrained(neo)
    input_ids = tokenizer(UNICORNS, return_tensors="pt").input_ids
    gen_tokens = model.generate(input_ids, do_sample=True, temperature=0.9, max_length=100, eos_token_id=None)
    assert gen_tokens.shape == (1, 100)
    assert tokenizer.batch_decode(gen_tokens)[0].startswith(UNICORNS)


def test_gpt_neo_by_its_auto_classes(neo: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(neo)
    model = AutoModelForCausalLM.from_pretrained(neo, dtype=torch.float16, device_map="cpu", attn_implementation="sdpa")
    inputs = tokenizer("Hello, I'm a language model", return_tensors="pt").to(model.device)
    output = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    assert tokenizer.decode(output[0], skip_special_tokens=True).startswith("Hello, I'm a language model")
    assert model.transformer.h[1].attn.attention_type == "local"


def test_gpt_neo_with_flash_attention_tells_what_it_needs(neo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(gptrio.MissingDependencyError, match="flash_attn"):
        AutoModelForCausalLM.from_pretrained(neo, dtype=torch.float16, attn_implementation="flash_attention_2")


def test_gpt_neox_generates(neox: Path) -> None:
    model = GPTNeoXForCausalLM.from_pretrained(neox)
    tokenizer = GPTNeoXTokenizerFast.from_pretrained(neox)
    prompt = "GPTNeoX20B is a 20B-parameter autoregressive Transformer model"
    input_ids = tokenizer(prompt, return_tensors="pt").input_ids
    gen_tokens = model.generate(input_ids, do_sample=True, temperature=0.9, max_length=100, eos_token_id=None)
    assert tokenizer.batch_decode(gen_tokens)[0].startswith(prompt)


def test_gpt_neox_scores(neox: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(neox)
    config = GPTNeoXConfig.from_pretrained(neox)
    config.is_decoder = True
    model = GPTNeoXForCausalLM.from_pretrained(neox, config=config)
    inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
    prediction_logits = model(**inputs).logits
    assert prediction_logits.shape == (1, 21, 257)
