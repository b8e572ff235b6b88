"""What runs where torch lacks operators that are not public, as its older versions do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptrio import AutoModelForCausalLM
from gptrio.kernels import linear, packing
from gptrio.kernels.formats import dequantize_int4, quantize_int4
from gptrio.kernels.operators import INT4_ROWS, ONEDNN_LINEAR, has_operators
from gptrio.kernels.quantized import quantized_linear
from gptrio.testing import tiny_config


def test_operators_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_operators(("mm", "ops.aten.gelu_"))
    assert not has_operators(("mm", "ops.mkldnn._no_such_operator"))
    assert not has_operators(("no_such.operator",))


@pytest.fixture
def old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in INT4_ROWS:
        monkeypatch.delattr(torch, name, raising=False)


@pytest.mark.usefixtures("old_torch")
@pytest.mark.parametrize("rows", [1, 3, 32, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int4_products_of_an_older_torch(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    codes, scale = quantize_int4(torch.randn(48, 128), 64)
    x, bias = torch.randn(rows, 128, dtype=dtype), torch.randn(48, dtype=dtype)
    with torch.no_grad():
        found = quantized_linear(x, codes, scale, bias, bits=4)
    wanted = x.double() @ dequantize_int4(codes, scale, torch.float64).t() + bias.double()
    assert found.dtype is dtype
    torch.testing.assert_close(found.double(), wanted, atol=0.15, rtol=0.02)


@pytest.mark.usefixtures("old_torch")
def test_generate_in_int4_of_an_older_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
    AutoModelForCausalLM.from_config(tiny_config("gpt_neox", **sizes)).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, load_in="int4")
    out = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, disable_compile=True, eos_token_id=None)
    assert out.shape == (1, 8)


def test_no_packs_without_onednns_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "has_operators", lambda names: names is not ONEDNN_LINEAR)
    assert not packing.can_pack(torch.float32)
    monkeypatch.setattr(linear, "can_pack_cached", packing.can_pack, raising=False)
    layer = torch.nn.Linear(512, 512)
    x = torch.randn(2, 512)
    with torch.no_grad(), linear.packed_inference(layer):
        found = linear.linear(x, layer.weight, layer.bias)
    assert torch.equal(found, layer(x))
    assert packing.packed_bytes(layer) == 0
