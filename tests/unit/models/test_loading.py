"""What loading a checkpoint costs."""

from __future__ import annotations

import subprocess
import sys

import torch

from gptrio import GPT2LMHeadModel
from gptrio.models.loading import build
from gptrio.testing import tiny_config


def test_loading_and_generating_leave_torchs_compiler_alone() -> None:
    code = (
        "import sys, torch, gptrio\n"
        "model = gptrio.AutoModelForCausalLM.from_pretrained('gptrio/stdlib-gpt2')\n"
        "model.generate(torch.tensor([[1]]), max_new_tokens=2, do_sample=False)\n"
        "print(*{'torch._dynamo', 'sympy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_model_built_on_a_device_is_drawn() -> None:
    torch.manual_seed(0)
    drawn = build(GPT2LMHeadModel, tiny_config(), device="cpu")
    torch.manual_seed(0)
    plain = GPT2LMHeadModel(tiny_config())
    for (name, one), (_, other) in zip(drawn.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(one, other), name
