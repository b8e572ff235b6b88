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


def test_its_settings_sample_text_and_a_call_may_search_greedily(recwarn: pytest.WarningsRecorder) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(NAME), AutoTokenizer.from_pretrained(NAME)
    prompt = tokenizer("import os", return_tensors="pt")
    texts = {tokenizer.decode(model.generate(**prompt, max_new_tokens=12, seed=seed)[0]) for seed in range(4)}
    greedy = {tokenizer.decode(model.generate(**prompt, max_new_tokens=12, do_sample=False)[0]) for _ in range(2)}
    assert (len(texts), len(greedy), recwarn.list) == (4, 1, [])


def test_it_writes_an_indented_body_after_a_function_header() -> None:
    model, tokenizer = GPT2LMHeadModel.from_pretrained(NAME), GPT2TokenizerFast.from_pretrained(NAME)
    prompt = tokenizer("def close(self):", return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    assert tokenizer.decode(ids[0]).startswith("def close(self):\n    ")


def test_it_needs_fewer_bits_than_xz_for_a_module_it_has_not_seen(pretrain: ModuleType) -> None:
    """`tempfile` changes little between versions of Python; on 3.11's the model needs 1.12 bits per byte for these."""
    assert pretrain.is_held_out("tempfile")
    data = (STDLIB / "tempfile.py").read_bytes()[:12_000]
    model, tokenizer = GPT2LMHeadModel.from_pretrained(NAME), GPT2TokenizerFast.from_pretrained(NAME)
    end = tokenizer.eos_token_id
    bits = pretrain.count_bits(model.eval(), [end, *tokenizer(data.decode(), verbose=False).input_ids, end])
    assert bits / len(data) < 1.2 < 8 * len(lzma.compress(data, preset=9)) / len(data)


def test_other_standard_libraries_add_files_of_other_contents(
    pretrain: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, files in {
        "a": {"x.py": "1", "p/y.py": "2"},
        "b": {"x.py": "1", "p/y.py": "3", "test/z.py": "4"},
    }.items():
        for name, text in files.items():
            (tmp_path / version / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / version / name).write_text(text)
    monkeypatch.setattr(pretrain, "STDLIB", tmp_path / "a")
    assert pretrain.read_modules() == {"x": [b"1"], "p": [b"2"]}
    assert pretrain.read_modules([tmp_path / "b"]) == {"x": [b"1"], "p": [b"2", b"3"]}


@pytest.mark.parametrize("shape", [(6, 6), (6, 18), (24, 6), (6, 24)], ids=str)
def test_its_optimizer_is_muon(pretrain: ModuleType, shape: tuple[int, int]) -> None:
    """Beside torch's, whose matrices are (out, in), not side by side, and rounded to bfloat16 while orthogonalized."""
    torch.manual_seed(0)
    weight, gradients = torch.nn.Parameter(torch.randn(shape)), torch.randn(3, *shape)
    parts = [
        torch.nn.Parameter(part.T.clone()) for part in weight.data.split(6 if shape == (6, 18) else shape[1], dim=1)
    ]
    ours = pretrain.Muon([{"params": [weight], "orthogonal": True, "lr": 0.1, "weight_decay": 0.2}])
    theirs = torch.optim.Muon(parts, lr=0.1, weight_decay=0.2)
    for gradient in gradients:
        weight.grad = gradient.clone()
        for part, own in zip(parts, gradient.split([p.shape[0] for p in parts], dim=1), strict=True):
            part.grad = own.T.clone()
        ours.step()
        theirs.step()
    assert weight.grad is None
    torch.testing.assert_close(weight.data, torch.cat([part.data.T for part in parts], dim=1), atol=0.01, rtol=0)


@pytest.mark.long
def test_the_script_that_made_it_trains_saves_and_evaluates(
    pretrain: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = {name: [(STDLIB / f"{name}.py").read_bytes()] for name in ("argparse", "colorsys", "datetime")}
    monkeypatch.setattr(pretrain, "read_modules", lambda roots=(): modules)
    monkeypatch.setattr(sys, "argv", ["pretrain_stdlib.py", "--out", str(tmp_path), "--steps", "2"])
    pretrain.main()
    assert "1 files held out, " in capsys.readouterr().out
    shipped = {path.name for path in FOLDER.iterdir()}
    assert shipped - {path.name for path in tmp_path.iterdir()} == {"README.md"}
