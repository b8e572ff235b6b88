"""`gptrio convert` as a shell runs it: published layouts, and those of nanoGPT and minGPT."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gptrio as library
from gptrio.cli.app import run
from gptrio.errors import CheckpointError
from gptrio.interop.convert import convert
from gptrio.interop.folders import copy_tokenizer, folder_beside, move_folder
from gptrio.testing.tiny import byte_tokenizer, tiny_config
from tests.cases import first
from tests.integration.test_command_line import gptrio, in_process

IDS = torch.arange(12)[None]


def built(family: str = "gpt2", **fields: Any) -> Any:
    torch.manual_seed(0)
    return library.AutoModelForCausalLM.from_config(tiny_config(family, initializer_range=0.1, **fields)).eval()


def logits(source: Any) -> torch.Tensor:
    model = source if isinstance(source, torch.nn.Module) else library.AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        return model.eval()(IDS).logits


def linear_tensors(model: Any, prefix: str = "", has_biases: bool = True) -> dict[str, torch.Tensor]:
    """A GPT-2 model's tensors as nanoGPT stores them: matrices (out, in)."""
    is_matrix = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {name: x.t().contiguous() if name.endswith(is_matrix) else x for name, x in model.state_dict().items()}
    return {prefix + name: x for name, x in state.items() if has_biases or not name.endswith(".bias")}


def write_nano(path: Path, model: Any, **options: Any) -> str:
    config = model.config
    arguments = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd, "bias": True}
    torch.save({"model": linear_tensors(model, **options), "model_args": arguments, "iter_num": 5}, path)
    return str(path)


def test_help_shows_examples():
    done = in_process("convert", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "gptrio convert nanoGPT/out/ckpt.pt ./model --tokenizer" in done.stdout


@pytest.mark.parametrize("prefix", first(["module._orig_mod.", "_orig_mod.", ""]))
def test_nanogpt_keeps_its_logits(prefix, tmp_path):
    model = built(activation_function="gelu")
    done = gptrio("convert", write_nano(tmp_path / "ckpt.pt", model, prefix=prefix), str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("nanoGPT: logits before and after are equal")
    torch.testing.assert_close(logits(tmp_path / "out"), logits(model))


def test_nanogpt_without_biases_gets_zeros(tmp_path):
    model = built(activation_function="gelu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
    done = convert(write_nano(tmp_path / "ckpt.pt", model, has_biases=False), tmp_path / "out")
    assert done.difference < 1e-12
    torch.testing.assert_close(logits(tmp_path / "out"), logits(model))


def test_nanogpt_with_an_mlp_of_another_width(tmp_path):
    model = built(activation_function="gelu", n_inner=40)
    convert(write_nano(tmp_path / "ckpt.pt", model), tmp_path / "out")
    assert library.AutoConfig.from_pretrained(tmp_path / "out").n_inner == 40
    torch.testing.assert_close(logits(tmp_path / "out"), logits(model))


def test_mingpt_needs_its_number_of_heads(tmp_path):
    model = built(tie_word_embeddings=False)
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(2)}
    torch.save(linear_tensors(model) | masks, tmp_path / "model.pt")
    source, target = str(tmp_path / "model.pt"), str(tmp_path / "out")
    refused = in_process("convert", source, target)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "attention heads" in refused.stderr and "--heads 4" in refused.stderr
    done = in_process("convert", source, target, "--heads", "4", "--json")
    assert json.loads(done.stdout)["kind"] == "minGPT"
    torch.testing.assert_close(logits(target), logits(model))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "gpt_neox"])
def test_torch_files_with_wrapped_names_become_safetensors_in_shards(family, tmp_path):
    model = built(family)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path / "in")
    byte_tokenizer().save_pretrained(tmp_path / "in")
    state = {f"module._orig_mod.{name}": x for name, x in model.state_dict().items()}
    if family == "gpt_neox":  # as Transformers 5 names the head
        state["module._orig_mod.lm_head.weight"] = state.pop("module._orig_mod.embed_out.weight")
    torch.save(state, tmp_path / "in" / "pytorch_model.bin")
    done = convert(str(tmp_path / "in"), tmp_path / "out", max_shard_size="40KB")
    names = {path.name for path in done.files}
    assert names >= {"config.json", "model.safetensors.index.json", "tokenizer.json", "vocab.json"}
    stored = [name for path in (tmp_path / "out").glob("*.safetensors") for name in load_file(path)]
    assert set(stored) <= set(model.state_dict()) and len(stored) > 20
    assert torch.equal(logits(tmp_path / "out"), logits(model))


def test_a_folder_that_is_not_empty_is_kept_without_overwrite(tmp_path):
    built().save_pretrained(tmp_path / "in")
    target = tmp_path / "out"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    refused = in_process("convert", str(tmp_path / "in"), str(target))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--overwrite" in refused.stderr and refused.stderr.count("\n") == 1
    assert [path.name for path in target.iterdir()] == ["notes.txt"]
    convert(str(tmp_path / "in"), target, overwrite=True)
    assert (target / "notes.txt").read_text() == "mine" and (target / "model.safetensors").exists()


def test_nothing_is_written_where_logits_differ(tmp_path, monkeypatch):
    from gptrio.interop.linear_layout import LinearLayout

    monkeypatch.setattr(LinearLayout, "converted", lambda self: dict(self.tensors) | flipped(self.tensors))
    source = write_nano(tmp_path / "ckpt.pt", built(activation_function="gelu"))
    with pytest.raises(CheckpointError, match="differ"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists() and os.listdir(tmp_path) == ["ckpt.pt"]


def flipped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices in the right shape and the wrong order."""
    names = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {name: x.t().flip(0).contiguous() for name, x in tensors.items() if name.endswith(names)}


def test_another_torch_file_is_refused(tmp_path):
    torch.save({"tok_emb.weight": torch.ones(2, 2)}, tmp_path / "x.pt")
    done = in_process("convert", str(tmp_path / "x.pt"), str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "no checkpoint of nanoGPT or minGPT" in done.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["nanoGPT", "gpt_neox"])
def test_types_of_the_files_stay(family, dtype, tmp_path):
    model = built(**({"activation_function": "gelu"} if family == "nanoGPT" else {"family": family})).to(dtype)
    if family == "nanoGPT":
        source = write_nano(tmp_path / "ckpt.pt", model)
    else:
        source = str(tmp_path / "in")
        model.save_pretrained(source)
        config = json.loads((tmp_path / "in" / "config.json").read_text(encoding="utf-8"))
        (tmp_path / "in" / "config.json").write_text(json.dumps({**config, "dtype": "float32"}), encoding="utf-8")
    convert(source, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {x.dtype for x in stored.values()} == {dtype}
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in stored.items())


def test_a_vocabulary_that_was_padded_stays(tmp_path):
    model = built(activation_function="gelu", vocab_size=320)
    convert(write_nano(tmp_path / "ckpt.pt", model), tmp_path / "out")
    assert logits(tmp_path / "out").shape[-1] == 320


def test_a_tokenizer_is_copied_with_its_templates(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = write_nano(tmp_path / "ckpt.pt", built(activation_function="gelu"))
    done = gptrio("convert", source, str(tmp_path / "out"), "--tokenizer", str(tmp_path / "tokenizer"))
    assert (done.returncode, done.stderr) == (0, "")
    assert library.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template
    refused = in_process("convert", source, str(tmp_path / "no"), "--tokenizer", str(tmp_path))
    assert refused.returncode == 1 and "has no tokenizer: none of" in refused.stderr
    assert sorted(os.listdir(tmp_path)) == ["ckpt.pt", "out", "tokenizer"]


def test_a_tokenizer_that_does_not_load_is_warned_of(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "in")
    (tmp_path / "in" / "tokenizer_config.json").write_text("[]")
    (tmp_path / "out").mkdir()
    with pytest.warns(
        library.GptrioWarning, match="copied as it is, and does not load: .*tokenizer_config.json holds a"
    ):
        copy_tokenizer(str(tmp_path / "in"), tmp_path / "out", is_required=False)
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == "[]"


@pytest.mark.parametrize(
    "error", [lambda file: OSError(errno.ENOSPC, "full", str(file)), lambda file: CheckpointError(f"{file} is odd")]
)
def test_errors_name_the_files_of_the_target(error, tmp_path):
    target = tmp_path / "out"
    with pytest.raises(OSError, match=re.escape(str(target / "model.safetensors"))), folder_beside(target) as folder:
        raise error(folder / "model.safetensors")
    assert os.listdir(tmp_path) == []


def test_only_files_that_are_replaced_are_removed(tmp_path):
    built().save_pretrained(tmp_path / "in", max_shard_size="40KB")
    (tmp_path / "in" / "model.fp16.safetensors").write_bytes(b"another variant")
    convert(str(tmp_path / "in"), tmp_path / "in", overwrite=True)
    left = {path.name for path in (tmp_path / "in").glob("*.safetensors*")}
    assert left == {"model.safetensors", "model.fp16.safetensors"}
    assert torch.isfinite(logits(tmp_path / "in")).all()


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_at_any_file_leaves_the_old_model_whole(error, tmp_path, monkeypatch):
    built().save_pretrained(tmp_path / "in", max_shard_size="40KB")
    (tmp_path / "in" / "chat_template.jinja").write_text("new")
    target, moved, replace = tmp_path / "out", [], Path.replace
    built("gpt_neox").save_pretrained(target)
    (target / "chat_template.jinja").symlink_to("../nowhere")
    (target / "notes.txt").write_text("mine")
    before = contents(target)

    def fail_once(path: Path, place: Path) -> None:
        moved.append(place.name)
        if len(moved) == last:
            raise error
        replace(path, place)

    monkeypatch.setattr(Path, "replace", fail_once)
    for last in range(1, 100):
        moved.clear()
        shutil.copytree(tmp_path / "in", tmp_path / f"{last}")
        try:
            move_folder(tmp_path / f"{last}", target)
        except error:
            assert contents(target) == before
        else:
            break
    names = {path.name for path in (tmp_path / "in").iterdir()}
    assert len(names) > 4 and last == len(moved) + 1 == len(names) + len(before)
    assert contents(target) == contents(tmp_path / "in") | {"notes.txt": b"mine"}
    assert (moved[0], moved[-1]) == ("config.json", "config.json"), "a process that is killed leaves no mixture of two"


def contents(folder: Path) -> dict[str, bytes | str]:
    """The files of a folder, and where links lead."""
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return {path.name: os.readlink(path) if path.is_symlink() else path.read_bytes() for path in files}


def test_a_new_folder_has_the_permissions_of_one(tmp_path):
    built().save_pretrained(tmp_path / "in")
    (tmp_path / "plain").mkdir()
    convert(str(tmp_path / "in"), tmp_path / "a" / "b" / "out")
    assert (tmp_path / "a" / "b" / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert os.listdir(tmp_path / "a" / "b") == ["out"]


def test_tensors_without_a_place_are_named(tmp_path):
    model = built()
    torch.save({**model.state_dict(), "extra.weight": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    with pytest.warns(library.GptrioWarning, match="extra.weight"):
        convert(str(tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "target", "options", "code", "message"),
    [
        ("notes.txt", "out", (), 1, "is no torch file of nanoGPT or minGPT"),
        ("in/model.safetensors", "out", (), 1, "give the folder that holds the file"),
        ("in", "notes.txt", (), 1, "notes.txt is a file; give a folder"),
        ("in", "notes.txt/out", (), 1, "notes.txt"),
        ("in", "out", ("--heads", "4"), 2, "--heads 4 has no effect on"),
        ("in", "out", ("--activation", "gelu"), 2, "--activation gelu has no effect on"),
        ("half.pt", "out", (), 1, "has no transformer.wpe.weight"),
        ("part.pt", "out", ("--heads", "4"), 1, "does not hold a whole minGPT model"),
        ("nan", "out", (), 1, "nan gives results that are no finite numbers, which prove nothing"),
        ("less", "out", (), 1, "less lacks tensors of GPT2LMHeadModel: ['transformer.h.0.ln_1.weight']"),
        ("in", "out", ("--tokenizer", "in/config.json"), 1, "'in/config.json' is a file; give the folder"),
        ("in", "out", ("--tokenizer", "no/such/folder"), 1, "'no/such/folder' is neither an existing folder nor"),
        ("in", "out", ("--tokenizer", "broken"), 1, "tokenizer.json"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_nothing_is_written(
    source, target, options, code, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    built().save_pretrained("in")
    Path("notes.txt").write_text("mine")
    tensors = linear_tensors(built())
    torch.save({name: x for name, x in tensors.items() if "wpe" not in name}, "half.pt")
    torch.save({name: x for name, x in tensors.items() if "ln_f" not in name}, "part.pt")
    shutil.copytree("in", "nan")
    shutil.copytree("in", "less")
    saved = load_file("in/model.safetensors")
    save_file({name: x * math.nan for name, x in saved.items()}, "nan/model.safetensors")
    save_file({name: x for name, x in saved.items() if "h.0.ln_1.weight" not in name}, "less/model.safetensors")
    byte_tokenizer().save_pretrained("broken")
    Path("broken/tokenizer.json").write_text("{")
    before = sorted(os.listdir())
    assert run(["convert", source, target, *options]) == code
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert (captured.out, sorted(os.listdir())) == ("", before)
