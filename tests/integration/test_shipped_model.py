"""The model that ships: its files, its tokenizer, how well it predicts Python new to it, and the script behind it."""

from __future__ import annotations

import importlib.util
import lzma
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
import torch

import gptrio
from gptrio import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, GPT2Tokenizer, GPT2TokenizerFast

NAME = "gptrio/stdlib-gpt2"
FOLDER = Path(gptrio.__file__).parent / "assets" / "stdlib-gpt2"
SCRIPT = Path(__file__).parents[2] / "examples" / "pretrain_stdlib.py"
STDLIB = Path(sysconfig.get_path("stdlib"))
TEXTS = [
    "def hello_world():\n    print('Hello, world!')\n",
    "class A(B):\n\tx: int = 0x7f  # no-break\u00a0space\r\n",
    "München, 東京, \U0001f40d, \x00\x1f",
    "<|endoftext|>import os<|endoftext|>",
    "",
]


@pytest.fixture(scope="module")
def pretrain() -> ModuleType:
    """The example script as a module."""
    spec = importlib.util.spec_from_file_location("pretrain_stdlib", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_loads_by_name_through_the_auto_classes() -> None:
    model = AutoModelForCausalLM.from_pretrained(NAME)
    tokenizer = AutoTokenizer.from_pretrained(NAME)
    assert isinstance(model, GPT2LMHeadModel) and isinstance(tokenizer, GPT2TokenizerFast)
    assert len(tokenizer) == model.config.vocab_size == 4096
    assert tokenizer.model_max_length == model.config.max_position_embeddings == model.config.n_positions == 512
    ends = {tokenizer.eos_token_id, model.config.eos_token_id, model.generation_config.eos_token_id}
    assert ends == {tokenizer.convert_tokens_to_ids("<|endoftext|>")} == {4095}


def test_its_weights_are_small_and_in_bfloat16() -> None:
    model = GPT2LMHeadModel.from_pretrained(NAME, dtype="auto")
    assert (FOLDER / "model.safetensors").stat().st_size <= 12_000_000
    assert 4_000_000 <= model.num_parameters() <= 6_000_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("text", TEXTS)
def test_both_tokenizers_agree_and_give_the_text_back(text: str) -> None:
    fast, slow = GPT2TokenizerFast.from_pretrained(NAME), GPT2Tokenizer.from_pretrained(NAME)
    ids = fast(text).input_ids
    assert slow(text).input_ids == ids
    assert fast.decode(ids) == slow.decode(ids) == text


def test_a_level_of_indentation_is_one_token() -> None:
    tokenizer = GPT2TokenizerFast.from_pretrained(NAME)
    assert tokenizer.tokenize("\n        return") == ["ĊĠĠĠĠĠĠĠ", "Ġreturn"]


def test_it_writes_an_indented_body_after_a_function_header() -> None:
    model, tokenizer = GPT2LMHeadModel.from_pretrained(NAME), GPT2TokenizerFast.from_pretrained(NAME)
    prompt = tokenizer("def close(self):", return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    assert tokenizer.decode(ids[0]).startswith("def close(self):\n    ")


def test_it_needs_fewer_bits_than_xz_for_a_module_it_has_not_seen(pretrain: ModuleType) -> None:
    """`tempfile` changes little between versions of Python; on 3.11's the model needs 1.33 bits per byte for these."""
    assert pretrain.is_held_out("tempfile")
    data = (STDLIB / "tempfile.py").read_bytes()[:12_000]
    model, tokenizer = GPT2LMHeadModel.from_pretrained(NAME), GPT2TokenizerFast.from_pretrained(NAME)
    end = tokenizer.eos_token_id
    bits = pretrain.count_bits(model.eval(), [end, *tokenizer(data.decode(), verbose=False).input_ids, end])
    assert bits / len(data) < 1.4 < 8 * len(lzma.compress(data, preset=9)) / len(data)


@pytest.mark.long
def test_the_script_that_made_it_trains_saves_and_evaluates(
    pretrain: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = {name: [(STDLIB / f"{name}.py").read_bytes()] for name in ("argparse", "colorsys", "datetime")}
    monkeypatch.setattr(pretrain, "read_modules", lambda: modules)
    monkeypatch.setattr(sys, "argv", ["pretrain_stdlib.py", "--out", str(tmp_path), "--steps", "2"])
    pretrain.main()
    assert "1 files held out, " in capsys.readouterr().out
    shipped = {path.name for path in FOLDER.iterdir()}
    assert shipped - {path.name for path in tmp_path.iterdir()} == {"README.md"}
