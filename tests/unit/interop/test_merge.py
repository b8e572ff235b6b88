"""`merge` writes one plain model that computes what model and adapter computed together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import gptrio
from gptrio.errors import CheckpointError, CheckpointNotFoundError, OptionError
from gptrio.interop.merge import merge
from gptrio.testing import tiny_config
from tests.contract.families import FAMILIES

peft = pytest.importorskip("peft")
IDS = torch.arange(1, 25).view(2, 12)


def adapted(folder: Path, config: Any, task: str, auto: str, **lora: Any) -> Any:
    """A model in `folder`/base and an adapter with random weights in `folder`/adapter."""
    torch.manual_seed(0)
    base = getattr(gptrio, auto).from_config(config)
    base.save_pretrained(folder / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules="all-linear", task_type=task, **lora)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.normal_(std=0.1)
    model.save_pretrained(folder / "adapter")
    return model


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_merged_files_give_the_adapted_logits_in_both_libraries(family: Any, tmp_path: Path) -> None:
    import transformers

    config = tiny_config(family.model_type, pad_token_id=0)
    model = adapted(tmp_path, config, "CAUSAL_LM", "AutoModelForCausalLM", fan_in_fan_out=family.model_type == "gpt2")
    done = merge(str(tmp_path / "base"), str(tmp_path / "adapter"), tmp_path / "merged")
    assert 0 <= done.difference < 1e-5 and tmp_path / "merged/model.safetensors" in done.files
    with torch.no_grad():
        expected = model(IDS).logits
        assert (expected - model.get_base_model()(IDS).logits).abs().max() == 0
        with model.disable_adapter():
            assert (expected - model(IDS).logits).abs().max() > 0.01
        for library in (gptrio, transformers):
            merged = library.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
            torch.testing.assert_close(merged(IDS).logits, expected, rtol=0, atol=2e-5)


def test_a_trained_head_is_merged_with_its_labels(tmp_path: Path) -> None:
    config = tiny_config("gpt2", pad_token_id=0, num_labels=3)
    model = adapted(tmp_path, config, "SEQ_CLS", "AutoModelForSequenceClassification", fan_in_fan_out=True)
    merge(str(tmp_path / "base"), str(tmp_path / "adapter"), tmp_path / "merged")
    merged = gptrio.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_config.json", "{", "adapter_config.json is not valid JSON"),
        ("adapter_config.json", "[1]", "adapter_config.json holds a list; expected a JSON object"),
        ("adapter_config.json", "{}", "peft_type=None is no method of PEFT, such as 'LORA'"),
        ("adapter_config.json", {"task_type": "SEQ_2_SEQ_LM"}, "task_type='SEQ_2_SEQ_LM' is not possible"),
        ("adapter_config.json", {"target_modules": ["nope"]}, "cannot be put on '.*base': Target modules"),
        ("adapter_config.json", {"r": 3}, r"cannot be put on '.*base': .* size mismatch .*\.\.\.$"),
        ("adapter_model.safetensors", "xx", "adapter '.*adapter' cannot be put on '.*base': .*header too small"),
    ],
)
def test_an_adapter_that_is_broken_or_does_not_fit_is_named(
    name: str, content: Any, message: str, tmp_path: Path
) -> None:
    adapted(tmp_path, tiny_config("gpt2"), "CAUSAL_LM", "AutoModelForCausalLM", fan_in_fan_out=True)
    file = tmp_path / "adapter" / name
    if isinstance(content, dict):
        content = json.dumps({**json.loads(file.read_text()), **content})
    file.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        merge(str(tmp_path / "base"), str(tmp_path / "adapter"), tmp_path / "merged")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"holds no weights of an adapter: neither adapter_model.saf"):
        merge(str(tmp_path / "base"), str(tmp_path / "adapter"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    config = tiny_config("gpt2")
    base = gptrio.GPT2LMHeadModel(config)
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointNotFoundError, match=r"holds no adapter: there is no adapter_config.json"):
        merge(str(tmp_path / "base"), str(tmp_path / "base"), tmp_path / "merged")
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(base, prompts).save_pretrained(tmp_path / "prompts")
    with pytest.raises(OptionError, match="adapter of PROMPT_TUNING, which no weights can hold"):
        merge(str(tmp_path / "base"), str(tmp_path / "prompts"), tmp_path / "merged")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        merge(str(tmp_path / "base"), str(tmp_path / "prompts"), tmp_path / "base")
    assert not (tmp_path / "merged").exists() and sorted(path.name for path in tmp_path.iterdir()) == [
        "base",
        "prompts",
    ]
