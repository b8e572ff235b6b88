"""`gptrio verify` as a shell runs it, and what it finds in models with something broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

import gptrio as library
from gptrio.models import gpt_neox
from gptrio.nn.packed_context import PackedContext
from gptrio.quantization import native
from gptrio.testing.tiny import byte_tokenizer, tiny_config
from gptrio.verification import paths
from gptrio.verification import verify as verification
from gptrio.verification.prompts import make_prompts
from gptrio.verification.verify import Report, verify
from tests.cases import first
from tests.integration.test_command_line import gptrio, in_process
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
    done = in_process("verify", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "gptrio verify ./my-model" in done.stdout


@pytest.mark.long  # tiny models do so in every run, and the packaged model in float32
def test_the_packaged_model_passes_on_every_path():
    done = gptrio("verify")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    head, *rows, last = done.stdout.splitlines()
    assert head.split() == ["weights", "path", "difference", "bound", "result"]
    assert {row.split()[0] for row in rows} == {"float32", "bfloat16", "int8", "int4"}
    assert last.endswith("0 out of bounds")


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_of_every_family_pass(family, tmp_path):
    done = in_process("verify", saved(tmp_path, family, hidden_size=64))  # heads of 16, as the compiled step needs
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stdout + done.stderr
    assert "the model is untrained" in done.stderr
    head, *rows, last = done.stdout.splitlines()
    assert head.split() == ["weights", "path", "difference", "bound", "result"]
    assert {row.split()[0] for row in rows} == {"float32", "bfloat16", "int8", "int4"}
    assert last.endswith("0 out of bounds")
    computed = {" ".join(row.split()[1:-3]) for row in rows if row.startswith("float32") and row.endswith("ok")}
    assert computed >= {"eager", "sdpa", "cached", "static cache", "batched", "padded left", "packed rows", "generate"}


def test_the_packaged_model_passes_in_float32():
    done = gptrio("verify", "--weights", "float32")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.splitlines()[-1].endswith("0 out of bounds")


def test_json_without_a_tokenizer(tmp_path):
    library.AutoModelForCausalLM.from_config(tiny_config("gpt_neo")).save_pretrained(tmp_path)
    done = in_process("verify", str(tmp_path), "--weights", "float32", "--json", env={**os.environ, "NO_COLOR": "1"})
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
    attend = PackedContext.attend
    monkeypatch.setattr(PackedContext, "attend", lambda self, q, k, v, *rest: attend(self, k, q, v, *rest))
    assert failed(verify(saved(tmp_path, family), weights="float32")) == {"packed rows"}


def test_a_weight_that_is_transposed_while_it_is_quantized_is_found(tmp_path, monkeypatch):
    quantize = native.codes.quantize_int8
    monkeypatch.setattr(
        native.codes, "quantize_int8", lambda x: quantize(x.t().contiguous() if x.shape[0] == x.shape[1] else x)
    )
    assert failed(verify(saved(tmp_path), weights="int8")) == {"rounded"}


def transpose(weight: torch.Tensor) -> None:
    assert weight.shape[0] == weight.shape[1]  # or the loader would find it by its shape
    weight.copy_(weight.t().clone())


def exchange(one: torch.Tensor, other: torch.Tensor) -> None:
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)


def heads(model: Any) -> torch.Tensor:
    """(heads, 3, size of a head, hidden): queries, keys and values of GPT-NeoX's first layer."""
    return model.gpt_neox.layers[0].attention.query_key_value.weight.view(4, 3, 8, 32)


def exchange_in_gpt_neo(model: Any) -> None:
    attention = model.transformer.h[0].attn.attention
    exchange(attention.q_proj.weight, attention.k_proj.weight)


def interleave_rotary(model: Any) -> None:
    """Order rotated dimensions by pairs, (0, 4, 1, 5, ...), instead of by halves."""
    heads(model)[:, :2] = heads(model)[:, :2, [0, 4, 1, 5, 2, 6, 3, 7]]


LAYOUTS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "queries and keys are exchanged": (
        "gpt2",
        lambda model: exchange(*model.transformer.h[0].attn.c_attn.weight.split(32, 1)[:2]),
    ),
    "an output is transposed": ("gpt_neo", lambda m: transpose(m.transformer.h[1].attn.attention.out_proj.weight)),
    "rotary dimensions are interleaved": ("gpt_neox", interleave_rotary),
    "a square weight is transposed": ("gpt2", lambda model: transpose(model.transformer.h[0].attn.c_proj.weight)),
    "projections are exchanged": ("gpt_neo", exchange_in_gpt_neo),
    "dense is transposed": ("gpt_neox", lambda model: transpose(model.gpt_neox.layers[0].attention.dense.weight)),
    "queries and keys of heads are exchanged": ("gpt_neox", lambda m: exchange(heads(m)[:, 0], heads(m)[:, 1])),
    "thirds are read for heads": (
        "gpt_neox",
        lambda model: heads(model).copy_(heads(model).reshape(3, 4, 8, 32).transpose(0, 1).clone()),
    ),
    "half of the rotary dimensions": ("gpt_neox", lambda model: setattr(model.config, "rotary_pct", 0.5)),
}


def centered_logits(folder: str, rows: list[list[int]]) -> list[torch.Tensor]:
    """Transformers' logits in float64."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64)
    with torch.no_grad():
        found = [model(torch.tensor([row])).logits[0] for row in rows]
    return [logits - logits.mean(-1, keepdim=True) for logits in found]


@pytest.mark.parametrize("layout", first(LAYOUTS, 3))
def test_a_path_with_a_broken_layout_differs_as_in_the_oracle_and_files_with_it_pass(layout, tmp_path, monkeypatch):
    family, edit = LAYOUTS[layout]
    fields = {"rotary_pct": 1.0} if family == "gpt_neox" else {}
    right = saved(tmp_path / "right", family, **fields)
    broken = saved(tmp_path / "broken", family, edit, **fields)
    other = library.AutoModelForCausalLM.from_pretrained(broken)
    monkeypatch.setitem(verification._ALL, "sdpa", lambda model, prompts: paths.forward(other, prompts))
    report = verify(right, weights="float32")
    assert failed(report) == {"sdpa"}
    rows, _ = make_prompts(right, other.config)
    pairs = zip(centered_logits(broken, rows), centered_logits(right, rows), strict=True)
    expected = max(((found - wanted).abs().max() / wanted.abs().max()).item() for found, wanted in pairs)
    (found,) = [one.difference for one in report.comparisons if one.path == "sdpa"]
    assert expected > 100 * verification.BOUNDS["float32"]
    assert found == pytest.approx(expected, rel=1e-3)
    monkeypatch.undo()
    assert verify(broken, weights="float32").passed  # every way reads these weights alike


def test_rotary_dimensions_of_single_tokens_that_are_wrong_are_found(tmp_path, monkeypatch):
    rotate = gpt_neox.rotate

    def wrong(x: torch.Tensor, tables: Any) -> torch.Tensor:
        return rotate(x.flip(-1), tables).flip(-1) if x.shape[2] == 1 else rotate(x, tables)

    monkeypatch.setattr(gpt_neox, "rotate", wrong)
    report = verify(saved(tmp_path, "gpt_neox"), weights="float32")
    assert {"cached", "static cache"} <= failed(report)
    assert failed(report).isdisjoint({"eager", "sdpa", "batched", "padded left", "padded right", "packed rows"})


@pytest.mark.parametrize(
    ("family", "bits"),
    first([("gpt_neox", "int8"), ("gpt2", "int4"), ("gpt_neo", "int8"), ("gpt2", "int8")], 2, names=2),
)
def test_a_quantized_checkpoint_is_compared_as_stored(family, bits, tmp_path, monkeypatch):
    source, folder = saved(tmp_path / "full", family, hidden_size=64), tmp_path / bits
    model = library.AutoModelForCausalLM.from_pretrained(source, load_in=bits)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    report = verify(str(folder))
    assert report.passed, failed(report)
    assert {one.weights for one in report.comparisons} == {"as stored"}
    plain = library.AutoModelForCausalLM.from_pretrained(folder).dequantize()
    plain.save_pretrained(tmp_path / "plain")
    rows, _ = make_prompts(source, model.config)
    logits = centered_logits(str(tmp_path / "plain"), rows)
    targets = torch.tensor([token for row in rows for token in row[1:]])
    loss = cross_entropy(torch.cat([x[:-1] for x in logits]), targets).item()
    assert report.loss == pytest.approx(loss, rel=1e-6)
    with pytest.raises(library.OptionError, match="kinds of this checkpoint: as stored"):
        verify(str(folder), weights="float32")
    right = native.quantized_linear
    monkeypatch.setattr(native, "quantized_linear", lambda x, *rest, **more: right(x.flip(-1), *rest, **more))
    assert {"sdpa", "cached", "padded left"} <= failed(verify(str(folder)))


def test_the_float64_weights_are_built_once_for_float32(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(verification._Reference, "__init__", count(verification._Reference.__init__, built))
    folder = saved(tmp_path)
    verify(folder, weights="float32")
    assert len(built) == 1
    verify(folder, weights="bfloat16")
    assert len(built) == 3  # in full and rounded


def count(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    return counted


OUT_OF_BOUNDS = """
import sys, gptrio.verification.verify as verification
from gptrio.cli import main
found = [verification.Comparison("float32", "sdpa", 1.0, 1e-4)]
verification.verify = lambda *_: verification.Report(found, warnings=["a warning"])
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX shell")
@pytest.mark.parametrize("buffering", first(["", "1"]), ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", first(["verify --json", "verify 2>&1", "verify"], 2))
def test_the_exit_code_holds_where_the_reader_of_the_pipe_is_gone(arguments, buffering):
    script = f'"$0" -c "$1" {arguments} | true; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, OUT_OF_BOUNDS],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONUNBUFFERED": buffering},
    )  # fmt: skip
    assert done.stdout == "1\n"
    assert done.stderr in ("", "gptrio: warning: a warning\n")


def spoil(model: Any) -> None:
    model.transformer.h[1].mlp.c_fc.weight[3, 5] = float("nan")


def test_weights_that_are_not_numbers_are_named_with_code_1(tmp_path):
    done = in_process("verify", saved(tmp_path, edit=spoil))
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
    done = in_process("verify", *arguments, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("gptrio: ") and done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_results_are_coloured_on_a_terminal_only(tmp_path):
    folder = saved(tmp_path)
    assert "\x1b[32mok" in on_a_terminal("verify", folder, "--weights", "float32")
    assert "\x1b" not in in_process("verify", folder, "--weights", "float32").stdout
