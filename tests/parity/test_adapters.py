"""LoRA of PEFT over plain GPT-2 layers: trained, merged, saved, and carried over to the reference."""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from gptrio import AutoModelForCausalLM, GPT2LMHeadModel, GPTNeoConfig, GPTNeoXConfig
from gptrio.nn.linear import Conv1D
from gptrio.testing import tiny_config

peft = pytest.importorskip("peft", reason="peft is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of PEFT: it does not know the layer

IDS = torch.arange(12).view(1, 12)
PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"


def registered(config: Any) -> Any:
    config._register_custom_module({Conv1D: peft.tuners.lora.Linear})
    return config


@pytest.fixture
def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(tiny_config()).eval()


@pytest.fixture
def trained(model: GPT2LMHeadModel) -> Any:
    """An adapter over a copy of the model, after a few steps."""
    config = peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(copy.deepcopy(model), registered(config))
    assert torch.equal(adapted(input_ids=IDS).logits, model(IDS).logits)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(4):
        loss = adapted(input_ids=IDS, labels=IDS).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    return adapted.eval()


def test_a_merged_adapter_is_a_plain_model_of_the_same_numbers(trained: Any) -> None:
    merged = copy.deepcopy(trained).merge_and_unload()
    assert type(merged.transformer.h[0].attn.c_attn) is Conv1D
    torch.testing.assert_close(merged(IDS).logits, trained(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(merged.generate(IDS, **options), trained.generate(input_ids=IDS, **options))


def test_a_saved_adapter_is_read_here_and_by_the_reference(
    model: GPT2LMHeadModel, trained: Any, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
    model.save_pretrained(tmp_path / "model")
    trained.save_pretrained(tmp_path / "adapter")
    expected = trained(input_ids=IDS).logits
    config = registered(peft.PeftConfig.from_pretrained(tmp_path / "adapter"))
    again = peft.PeftModel.from_pretrained(model, tmp_path / "adapter", config=config).eval()
    assert torch.equal(again(input_ids=IDS).logits, expected)
    other = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "model")
    other = peft.PeftModel.from_pretrained(other, tmp_path / "adapter").eval()
    torch.testing.assert_close(other(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "targets"),
    [
        (
            GPTNeoConfig(vocab_size=40, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["local"], 2]]),
            ["q_proj", "c_fc"],
        ),
        (
            GPTNeoXConfig(
                vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
            ),
            ["query_key_value", "dense_4h_to_h"],
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_other_families_need_no_registration(config: Any, targets: list[str]) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    expected = model(IDS).logits
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    assert torch.equal(adapted(input_ids=IDS).logits, expected)
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    grads = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(grads) == 8 and all(grad is not None for grad in grads.values())


def test_the_page_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    assert "trainable params" in capsys.readouterr().out
    assert torch.equal(names["again"](input_ids=IDS).logits, names["adapted"].eval()(input_ids=IDS).logits)
