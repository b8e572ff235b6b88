"""Codes, and products with them, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.errors import OptionError
from gptrio.kernels import quantized
from gptrio.kernels.formats import dequantize_int4, dequantize_int8, quantize_int4, quantize_int8
from gptrio.kernels.packing import _packs, can_pack
from gptrio.kernels.quantized import quantized_linear

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def relative(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).norm() / want.norm()).item()


def codes(bits: int, weight: Tensor, group: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    if bits == 8:
        packed, scale = quantize_int8(weight)
        return packed, scale, dequantize_int8(packed, scale, torch.float64)
    packed, scale = quantize_int4(weight, group)
    return packed, scale, dequantize_int4(packed, scale, torch.float64)


def test_int8_codes_are_within_half_a_step() -> None:
    weight = torch.randn(500, 700) * torch.logspace(-6, 2, 500).unsqueeze(1)
    packed, scale, back = codes(8, weight)
    assert packed.dtype is torch.int8 and scale.shape == (500,)
    assert ((back - weight).abs() <= scale.unsqueeze(1) * 0.5001).all()


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_codes_are_near_their_values(group: int) -> None:
    weight = torch.randn(300, 256)
    packed, scale, back = codes(4, weight, group)
    assert packed.shape == (300, 128) and scale.shape == (300, 256 // group) and scale.dtype is torch.bfloat16
    steps = scale.double().abs().repeat_interleave(group, dim=1)
    assert ((back - weight).abs() <= steps * 3.01).all()
    assert relative(back, weight.double()) < {32: 0.09, 64: 0.105, 128: 0.12}[group]


def test_int4_layout_is_as_documented() -> None:
    weight = torch.arange(64).remainder(15).sub(7).float().unsqueeze(0)
    weight[0, [3, 40]] = -8
    packed, scale = quantize_int4(weight, 32)
    assert scale.tolist() == [[1.0, 1.0]]
    assert (packed[0] & 15).int().sub(8).tolist() == weight[0, :32].int().tolist()
    assert (packed[0] >> 4).int().sub(8).tolist() == weight[0, 32:].int().tolist()


@pytest.mark.parametrize("bits", [8, 4])
def test_zero_weights_stay_zero(bits: int) -> None:
    packed, scale, back = codes(bits, torch.zeros(8, 64))
    assert not back.any()
    with torch.no_grad():
        assert not quantized_linear(torch.randn(2, 64), packed, scale, None, bits=bits).any()


@pytest.mark.parametrize("group", [0, 16, 48, 256])
def test_other_groups_are_refused(group: int) -> None:
    with pytest.raises(OptionError, match=f"group_size is {group}"):
        quantize_int4(torch.randn(4, 256), group)


def test_inputs_that_do_not_divide_are_refused() -> None:
    with pytest.raises(OptionError, match="192 inputs"):
        quantize_int4(torch.randn(4, 192), 128)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 15, 16, 32, 33])
def test_product_is_near_the_one_with_dequantized_weights(dtype: torch.dtype, bits: int, rows: int) -> None:
    for inner, outer, group in ((64, 67, 32), (384, 130, 64), (768, 259, 128)):
        packed, scale, back = codes(bits, torch.randn(outer, inner) * 0.05, group)
        x, bias = torch.randn(rows, inner).to(dtype), torch.randn(outer).to(dtype)
        with torch.inference_mode():
            got = quantized_linear(x, packed, scale, bias, bits=bits)
        assert got.dtype is dtype and got.shape == (rows, outer)
        assert relative(got, x.double() @ back.T + bias.double()) < 0.016


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("part", [1, 1000, 1 << 19])
def test_products_by_parts_are_whole(dtype: torch.dtype, bits: int, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As processors run them that multiply neither int8 nor bfloat16 matrices."""
    monkeypatch.setattr(quantized, "has_int8_products", lambda: False)
    monkeypatch.setattr(quantized, "can_pack_cached", lambda dtype: False)
    monkeypatch.setattr("gptrio.kernels.widened._PART", part)
    packed, scale, back = codes(bits, torch.randn(131, 256) * 0.05)
    x, bias = torch.randn(40, 256).to(dtype), torch.randn(131).to(dtype)
    with torch.inference_mode():
        got = quantized_linear(x, packed, scale, bias, bits=bits)
    bound = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert got.dtype is dtype and relative(got, x.double() @ back.T + bias.double()) < bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [1, 10_000, 1 << 24])
def test_products_of_many_rows_in_tiles(
    dtype: torch.dtype, bits: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "has_bfloat16_tiles", lambda: can_pack(torch.bfloat16))
    monkeypatch.setattr(quantized, "_BLOCK", size)
    packed, scale, back = codes(bits, torch.randn(131, 256) * 0.05)
    x, bias = torch.randn(2, 400, 256).to(dtype), torch.randn(131).to(dtype)
    with torch.inference_mode():
        for added in (bias, None):
            got = quantized_linear(x, packed, scale, added, bits=bits, activation="gelu_tanh")
            want = x.double() @ back.T + (0 if added is None else added.double())
            assert got.dtype is dtype and relative(got, F.gelu(want, approximate="tanh")) < 0.012


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [2, 20, 40])
def test_fusions_equal_the_separate_operations(bits: int, rows: int) -> None:
    packed, scale, _ = codes(bits, torch.randn(96, 128) * 0.1)
    x, bias = torch.randn(rows, 128), torch.randn(96)
    functions = {"relu": F.relu, "gelu_erf": F.gelu, "gelu_tanh": lambda t: F.gelu(t, approximate="tanh")}
    with torch.no_grad():
        plain = quantized_linear(x, packed, scale, bias, bits=bits)
        for name, function in functions.items():
            got = quantized_linear(x, packed, scale, bias, bits=bits, activation=name)
            torch.testing.assert_close(got, function(plain), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_do_not_depend_on_their_batch(bits: int) -> None:
    packed, scale, _ = codes(bits, torch.randn(300, 768) * 0.05)
    x = torch.randn(13, 768) * torch.logspace(-2, 2, 13).unsqueeze(1)
    with torch.no_grad():
        batch = quantized_linear(x, packed, scale, None, bits=bits)
        pairs = torch.cat([quantized_linear(x[i : i + 2], packed, scale, None, bits=bits) for i in range(0, 12, 2)])
    torch.testing.assert_close(pairs, batch[:12], atol=0, rtol=1e-6 if bits == 8 else 0.01)


@pytest.mark.parametrize("bits", [8, 4])
def test_changed_codes_or_scales_are_packed_anew(bits: int) -> None:
    packed, scale, _ = codes(bits, torch.randn(64, 128))
    x = torch.randn(1, 128)
    with torch.no_grad():
        before = quantized_linear(x, packed, scale, None, bits=bits)
        scale.mul_(2)
        torch.testing.assert_close(quantized_linear(x, packed, scale, None, bits=bits), before * 2)
        packed.copy_(packed.flip(0))
        scale.copy_(scale.flip(0))
        torch.testing.assert_close(quantized_linear(x, packed, scale, None, bits=bits), before.flip(1) * 2)
        key = id(packed)
        assert key in _packs
        del packed
    assert key not in _packs


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("rows", [1, 2, 20, 40])
@pytest.mark.parametrize("has_products", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
def test_nan_and_infinity_spoil_their_row_alone(
    bits: int, has_products: bool, rows: int, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "has_int8_products", lambda: has_products)
    packed, scale, _ = codes(bits, torch.randn(64, 128))
    x = torch.randn(rows, 128)
    x[-1, 100] = float(value)
    with torch.no_grad():
        got = quantized_linear(x, packed, scale, None, bits=bits)
    assert not got[-1].isfinite().any() and got[:-1].isfinite().all()


@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_pass_through_to_x(bits: int) -> None:
    packed, scale, back = codes(bits, torch.randn(64, 128))
    x = torch.randn(3, 128, requires_grad=True)
    quantized_linear(x, packed, scale, None, bits=bits).sum().backward()
    torch.testing.assert_close(x.grad, back.float().sum(0).expand(3, -1))


@pytest.mark.parametrize("bits", [8, 4])
def test_plain_path_is_the_dequantized_product(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "_is_cpu_inference", lambda x, codes: False)
    packed, scale, back = codes(bits, torch.randn(64, 128))
    x = torch.randn(5, 128)
    with torch.no_grad():
        got = quantized_linear(x, packed, scale, None, bits=bits, activation="relu")
    torch.testing.assert_close(got.double(), F.relu(x.double() @ back.T), atol=1e-4, rtol=1e-5)


def test_int8_takes_any_number_of_inputs() -> None:
    packed, scale, back = codes(8, torch.randn(10, 37))
    x = torch.randn(2, 37)
    with torch.no_grad():
        got = quantized_linear(x, packed, scale, None, bits=8)
    assert relative(got, x.double() @ back.T) < 0.02


@pytest.mark.parametrize("bits", [8, 4])
def test_empty_batches_give_empty_results(bits: int) -> None:
    packed, scale, _ = codes(bits, torch.randn(64, 128))
    with torch.no_grad():
        assert quantized_linear(torch.randn(0, 3, 128), packed, scale, None, bits=bits).shape == (0, 3, 64)
