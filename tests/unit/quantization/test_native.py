"""Swapping layers for int8 and int4 ones: values, loading, saving, sharing."""

from __future__ import annotations

import copy
import functools
import io
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from gptrio.checkpoint.keys import KeyRules
from gptrio.checkpoint.load import load_into
from gptrio.errors import OptionError, SizeMismatchError
from gptrio.kernels.formats import dequantize_int8
from gptrio.nn.linear import Conv1D, Linear
from gptrio.quantization import Int4Config, Int8Config, get_quantizer, quantize
from gptrio.quantization.native import QuantizedEmbedding, QuantizedLinear

CONFIGS = [Int8Config(), Int4Config(), Int4Config(group_size=64)]
BOUND = {8: 0.02, 4: 0.2}  # relative error of the outputs of a two-layer network


class Model(nn.Module):
    """Embedding, two layers and a tied or free head."""

    full_precision_modules = ("score",)

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.config = SimpleNamespace(tie_word_embeddings=tied)
        self.wte = nn.Embedding(200, 128)
        self.c_fc = Conv1D(256, 128)
        self.norm = nn.LayerNorm(256)
        self.c_proj = Linear(256, 128)
        self.lm_head = Linear(128, 200, bias=False)
        self.score = Linear(128, 3)
        if tied:
            self.lm_head.weight = self.wte.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids)
        return self.lm_head(self.c_proj(self.norm(self.c_fc(x)).relu()) + x)


def built(tied: bool = True) -> Model:
    torch.manual_seed(0)
    model = Model(tied)
    nn.init.normal_(model.c_fc.weight, std=0.1)
    return model.eval().requires_grad_(False)


def on_meta(tied: bool = True) -> Model:
    with torch.device("meta"):
        model = Model(tied)
    return model.eval()


def relative(got: Tensor, want: Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [1, 40])
def test_outputs_stay_close(config, tied: bool, rows: int) -> None:
    model, ids = built(tied), torch.arange(rows)
    want = model(ids)
    quantize(model, config)
    with torch.inference_mode():
        error = relative(model(ids), want)
    assert error < BOUND[4 if isinstance(config, Int4Config) else 8]


def test_every_layer_is_swapped_but_small_heads() -> None:
    model = built()
    quantize(model, Int4Config())
    kinds = {name: getattr(module, "bits", None) for name, module in model.named_children()}
    assert kinds == {"wte": 8, "c_fc": 4, "norm": None, "c_proj": 4, "lm_head": 8, "score": None}
    assert model.is_quantized and model.config.quantization_config["quant_method"] == "gptrio_int4"


def test_named_modules_are_left_alone() -> None:
    model = built(tied=False)
    quantize(model, Int8Config(modules_to_not_convert=["c_fc", "lm_head"]))
    assert isinstance(model.c_fc, Conv1D) and isinstance(model.lm_head, Linear)
    assert isinstance(model.c_proj, QuantizedLinear)


def test_tied_head_and_embedding_share_their_codes() -> None:
    model = built()
    quantize(model, Int8Config())
    assert isinstance(model.wte, QuantizedEmbedding)
    assert model.lm_head.weight is model.wte.weight and model.lm_head.weight_scale is model.wte.weight_scale
    rows = dequantize_int8(model.wte.weight, model.wte.weight_scale, torch.float32)
    assert torch.equal(model.wte(torch.tensor([[3, 7]])), rows[[3, 7]].unsqueeze(0))


@pytest.mark.parametrize("wrong", [-1, 200])
def test_ids_outside_the_table_are_refused(wrong: int) -> None:
    model = built()
    quantize(model, Int8Config())
    with pytest.raises(IndexError):
        model.wte(torch.tensor([wrong]))


def test_layer_whose_inputs_cannot_be_grouped_takes_8_bits() -> None:
    model = nn.Sequential(Linear(100, 64), Linear(64, 64)).eval()
    quantize(model, Int4Config(group_size=64))
    assert [layer.bits for layer in model] == [8, 4]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_quantizing_on_load_equals_quantizing_a_built_model(config, tied: bool) -> None:
    source = built(tied)
    model = on_meta(tied)
    quantizer = get_quantizer(config)
    quantizer.prepare(model)
    report = load_into(
        model,
        source.state_dict(),
        KeyRules(tied={"lm_head.weight": "wte.weight"} if tied else {}, ignore_missing=quantizer.ignore_missing),
        on_tensor=functools.partial(quantizer.load_tensor, model),
    )
    quantizer.finish(model)
    assert not (report.missing or report.unexpected or report.mismatched)
    quantize(source, config)
    ids = torch.arange(30)
    with torch.inference_mode():
        assert torch.equal(model(ids), source(ids))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_saved_codes_load_as_they_are(config, dtype: torch.dtype | None) -> None:
    source = built()
    quantize(source, config)
    if dtype:
        source.to(dtype)
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    model = on_meta()
    if dtype:
        model.to(dtype)
    quantizer = get_quantizer(source.config.quantization_config)
    quantizer.prepare(model)
    load_into(model, torch.load(buffer), dtype=dtype, on_tensor=functools.partial(quantizer.load_tensor, model))
    quantizer.finish(model)
    with torch.inference_mode():
        assert torch.equal(model(torch.arange(9)), source(torch.arange(9)))
    assert model.lm_head.weight is model.wte.weight


def test_weights_of_another_shape_are_refused() -> None:
    model = on_meta()
    quantizer = get_quantizer("int8")
    quantizer.prepare(model)
    with pytest.raises(SizeMismatchError, match=r"\(256, 64\).*\(256, 128\)"):
        quantizer.load_tensor(model, "c_fc.weight", torch.randn(64, 256))
    with pytest.raises(SizeMismatchError, match="int8"):
        quantizer.load_tensor(model, "c_fc.weight", torch.zeros(256, 64, dtype=torch.int8))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_change_of_dtype_keeps_codes_and_scales(config) -> None:
    model = built()
    quantize(model, config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "weight" in name}
    model.to(torch.bfloat16).float()
    after = model.state_dict()
    assert all(
        torch.equal(after[name], tensor)
        for name, tensor in before.items()
        if "norm" not in name and "score" not in name
    )
    model.to(torch.bfloat16)
    assert model.wte(torch.tensor([1])).dtype is torch.bfloat16
    with torch.inference_mode():
        assert model(torch.arange(3)).dtype is torch.bfloat16


def test_copies_are_independent() -> None:
    model = built()
    quantize(model, Int8Config())
    other = copy.deepcopy(model)
    other.c_fc.weight.zero_()
    assert model.c_fc.weight.any() and other.lm_head.weight is other.wte.weight


def test_memory_falls_to_the_codes() -> None:
    model = nn.Sequential(Linear(512, 512, bias=False))
    quantize(model, Int4Config(group_size=128))
    held = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert held == 512 * 512 // 2 + 512 * 4 * 2


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_adapters_can_be_trained_over_codes(bits: str) -> None:
    model = built()
    quantize(model, bits)
    adapter = nn.Parameter(torch.zeros(128, 128))
    x = torch.randn(4, 128)
    ((x + x @ adapter) @ model.lm_head.dequantized().T).sum().backward()
    assert adapter.grad is not None
    x.requires_grad_()
    model.c_fc(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "config", ["int5", {"quant_method": "gptq"}, {}, {"quant_method": "int4", "group": 3}], ids=str
)
def test_unknown_methods_and_options_are_refused(config) -> None:
    with pytest.raises(OptionError, match=r"quantization method"):
        get_quantizer(config)


def test_group_sizes_are_checked() -> None:
    with pytest.raises(OptionError, match="group_size is 33"):
        Int4Config(group_size=33)
