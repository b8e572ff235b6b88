"""What a checkpoint is said to hold is what the loaded model has."""

from __future__ import annotations

import pytest
import torch

import gptrio
from gptrio.models.checkpoint_summary import summarize
from gptrio.testing import tiny_config

FAMILIES = ("gpt2", "gpt_neo", "gpt_neox")


def save(model_type, folder, safe=True):
    model = gptrio.AutoModelForCausalLM.from_config(tiny_config(model_type, vocab_size=320, hidden_size=128))
    model.save_pretrained(folder, safe_serialization=safe)
    return model


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_parameters_of_the_parts_add_up(model_type, safe, tmp_path):
    model = save(model_type, tmp_path, safe)
    found = summarize(tmp_path, model.config.tie_word_embeddings)
    assert sum(found.parameters.values()) == sum(p.numel() for p in model.parameters())
    assert found.dtypes == {"float32": sum(p.numel() for p in model.parameters())}
    assert "other" not in found.parameters
    blocks = [p.numel() for name, p in model.named_parameters() if ".mlp." in name]
    assert found.parameters["MLP"] == sum(blocks)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_memory_is_what_a_loaded_model_takes(model_type, precision, tmp_path):
    model = save(model_type, tmp_path)
    found = summarize(tmp_path, model.config.tie_word_embeddings).memory()
    assert found["float32"] == 4 * sum(p.numel() for p in model.parameters())
    loaded = gptrio.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, load_in=precision)
    assert found[precision] == pytest.approx(loaded.get_memory_footprint(), rel=0.05)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_quantized_checkpoint_has_as_many_parameters(precision, tmp_path):
    model = save("gpt_neox", tmp_path / "full")
    whole = summarize(tmp_path / "full", model.config.tie_word_embeddings).parameters
    quantized = gptrio.AutoModelForCausalLM.from_pretrained(tmp_path / "full", load_in=precision)
    quantized.save_pretrained(tmp_path / "codes")
    assert summarize(tmp_path / "codes", quantized.config.tie_word_embeddings).parameters == whole
