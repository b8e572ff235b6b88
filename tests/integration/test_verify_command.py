"""`gptrio verify` as a shell runs it, and what it finds in models with something broken."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gptrio as library
from gptrio.testing.tiny import byte_tokenizer, tiny_config
from gptrio.verification.verify import Report, verify
from tests.integration.test_command_line import gptrio
from tests.integration.test_scoring_commands import on_a_terminal

FAMILIES = ("gpt2", "gpt_neo", "gpt_neox")


def saved(folder: Path, family: str = "gpt2", edit: Callable[[Any], None] | None = None, **fields: Any) -> str:
    """A folder of a random model and its tokenizer, with large weights, so that its logits are far from uniform."""
    torch.manual_seed(0)
    model = library.AutoModelForCausalLM.from_config(tiny_config(family, initializer_range=0.1, **fields))
    with torch.no_grad():
        if edit is not None:
            edit(model)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def failed(report: Report) -> set[str]:
    return {comparison.path for comparison in report.comparisons if not comparison.passed}


def test_help_shows_examples():
    done = gptrio("verify", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "gptrio verify ./my-model" in done.stdout


def test_the_packaged_model_passes_on_every_path():
    done = gptrio("verify")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    head, *rows, last = done.stdout.splitlines()
    assert head.split() == ["weights", "path", "difference", "bound", "result"]
    assert {row.split()[0] for row in rows} == {"float32", "bfloat16", "int8", "int4"}
    assert last.endswith("0 out of bounds")


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_of_every_family_pass(family, tmp_path):
    report = verify(saved(tmp_path, family, hidden_size=64))  # heads of 16, as the compiled step needs
    assert report.passed, failed(report)
    computed = {one.path for one in report.comparisons if one.difference is not None and one.weights == "float32"}
    assert computed >= {"eager", "sdpa", "cached", "static cache", "batched", "padded left", "packed rows", "generate"}


def test_json_without_a_tokenizer(tmp_path):
    library.AutoModelForCausalLM.from_config(tiny_config("gpt_neo")).save_pretrained(tmp_path)
    done = gptrio("verify", str(tmp_path), "--weights", "float32", "--json", env={**os.environ, "NO_COLOR": "1"})
    found = json.loads(done.stdout)
    assert (done.returncode, found["passed"], found["problems"]) == (0, True, [])
    assert "random ids" in done.stderr and found["loss"] is None
    assert all(one["difference"] < one["bound"] for one in found["comparisons"] if not one["skipped"])


def test_a_packed_weight_in_a_wrong_layout_is_found(monkeypatch):
    from gptrio.kernels import linear

    find = linear.find_pack
    monkeypatch.setattr(linear, "find_pack", lambda weight, *rest: find(weight.flip(0).contiguous(), *rest))
    report = verify("gptrio/stdlib-gpt2", weights="float32")
    assert {"packed weights", "generate"} <= failed(report)
    assert failed(report).isdisjoint({"eager", "sdpa", "cached", "static cache", "padded left"})
    assert not report.passed


@pytest.mark.parametrize("family", FAMILIES)
def test_exchanged_queries_and_keys_of_packed_rows_are_found(family, tmp_path, monkeypatch):
    from gptrio.scoring.forward import PackedContext

    attend = PackedContext.attend
    monkeypatch.setattr(PackedContext, "attend", lambda self, q, k, v, *rest: attend(self, k, q, v, *rest))
    assert failed(verify(saved(tmp_path, family), weights="float32")) == {"packed rows"}


def test_a_weight_that_is_transposed_while_it_is_quantized_is_found(tmp_path, monkeypatch):
    from gptrio.quantization import native

    quantize = native.codes.quantize_int8
    monkeypatch.setattr(
        native.codes, "quantize_int8", lambda x: quantize(x.t().contiguous() if x.shape[0] == x.shape[1] else x)
    )
    assert failed(verify(saved(tmp_path), weights="int8")) == {"rounded"}


def spoil(model: Any) -> None:
    model.transformer.h[1].mlp.c_fc.weight[3, 5] = float("nan")


def test_weights_that_are_not_numbers_are_named_with_code_1(tmp_path):
    done = gptrio("verify", saved(tmp_path, edit=spoil))
    assert done.returncode == 1
    assert "infinite or not numbers: transformer.h.1.mlp.c_fc.weight" in done.stderr


def test_tensors_that_the_files_lack_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    path = Path(saved(tmp_path)) / "model.safetensors"
    tensors = load_file(path)
    del tensors["transformer.h.0.attn.c_attn.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.warns(library.GptrioWarning, match="lacks"):
        report = verify(str(tmp_path))
    assert report.problems == ["the files lack 1 of the model's tensors: transformer.h.0.attn.c_attn.weight"]


def test_weights_in_wrong_places_of_a_trained_model_are_warned_of(tmp_path):
    model = library.AutoModelForCausalLM.from_pretrained("gptrio/stdlib-gpt2")
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_proj.weight.copy_(block.attn.c_proj.weight.t().clone())
            block.mlp.c_fc.weight.copy_(block.mlp.c_proj.weight.t().clone())
        model.transformer.ln_f.weight.copy_(model.transformer.ln_f.weight.flip(0))
    model.save_pretrained(tmp_path)
    library.AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2").save_pretrained(tmp_path)
    report = verify(str(tmp_path), weights="float32")
    assert report.passed
    assert any("no better than a guess" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("arguments", "code"), [(("./nowhere",), 1), (("--weights", "float9"), 2), (("--device", "abacus"), 2)]
)
def test_a_bad_command_line_is_one_line(arguments, code):
    done = gptrio("verify", *arguments, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("gptrio: ") and done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_results_are_coloured_on_a_terminal_only(tmp_path):
    folder = saved(tmp_path)
    assert "\x1b[32mok" in on_a_terminal("verify", folder, "--weights", "float32")
    assert "\x1b[3" not in on_a_terminal("verify", folder, "--weights", "float32", NO_COLOR="1")
