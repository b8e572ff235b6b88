"""`gptrio convert` as a shell runs it: published layouts, and those of nanoGPT and minGPT."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gptrio as library
from gptrio.errors import CheckpointError
from gptrio.interop.convert import convert
from gptrio.testing.tiny import byte_tokenizer, tiny_config
from tests.integration.test_command_line import gptrio

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
    done = gptrio("convert", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "gptrio convert nanoGPT/out/ckpt.pt ./model" in done.stdout


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
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


def test_mingpt_needs_its_number_of_heads(tmp_path):
    model = built(tie_word_embeddings=False)
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(2)}
    torch.save(linear_tensors(model) | masks, tmp_path / "model.pt")
    source, target = str(tmp_path / "model.pt"), str(tmp_path / "out")
    refused = gptrio("convert", source, target)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "attention heads" in refused.stderr and "--heads 4" in refused.stderr
    done = gptrio("convert", source, target, "--heads", "4", "--json")
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
    refused = gptrio("convert", str(tmp_path / "in"), str(target))
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
    done = gptrio("convert", str(tmp_path / "x.pt"), str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "no checkpoint of nanoGPT or minGPT" in done.stderr
