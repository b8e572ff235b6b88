"""Products of 16 bits on a processor that has none: rounded once, in every plain call, and left alone where watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gptrio.kernels import widened
from gptrio.kernels.linear import packed_inference
from gptrio.kernels.packing import packed_bytes
from gptrio.nn.activations import get_activation
from gptrio.nn.linear import Conv1D, Linear, feed_forward

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
TRANSPOSED = pytest.mark.parametrize("transposed", [False, True])


@contextmanager
def packed(module: nn.Module) -> Iterator[None]:
    with torch.no_grad(), packed_inference(module):
        yield


MODES: dict[str, Callable[[nn.Module], AbstractContextManager[Any]]] = {
    "plain call": lambda module: torch.no_grad(),
    "packed inference": packed,
    "inference mode": lambda module: torch.inference_mode(),
    "frozen": lambda module: nullcontext(module.requires_grad_(False)),
    "gradients": lambda module: nullcontext(),
}


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without products of 16 bits, whose emulation takes up to a hundred times as long as float32."""
    monkeypatch.setattr(widened, "can_pack_cached", lambda dtype: dtype.itemsize != 2)
    monkeypatch.setattr(widened, "has_no_instructions", lambda dtype: dtype.itemsize == 2)


def layer(inner: int, outer: int, dtype: torch.dtype, transposed: bool) -> Any:
    torch.manual_seed(inner + outer)
    module = Conv1D(outer, inner) if transposed else Linear(inner, outer)
    nn.init.normal_(module.weight, std=inner**-0.5)
    nn.init.normal_(module.bias)
    return module.to(dtype).eval()


def exact(module: Any, x: Tensor) -> Tensor:
    weight = module.weight.double() if isinstance(module, Conv1D) else module.weight.double().T
    return (x.double() @ weight + module.bias.double()).detach()


def assert_rounded_once(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    assert got.dtype is dtype and got.shape == want.shape
    nearest = torch.finfo(dtype).eps / 2 * want.abs() + 1e-5
    assert bool(((got.double() - want).abs() <= nearest).all())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 40])
@TRANSPOSED
@DTYPES
def test_a_layer_rounds_once(dtype: torch.dtype, transposed: bool, rows: int, mode: str) -> None:
    module, x = layer(256, 320, dtype, transposed), torch.randn(2, rows, 256).to(dtype)
    with MODES[mode](module):
        got = module(x)
    assert_rounded_once(got, exact(module, x), dtype)
    assert packed_bytes(module) == 0


@pytest.mark.parametrize("part", [1, 1000])
@TRANSPOSED
def test_a_weight_is_widened_in_parts_of_any_size(transposed: bool, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened, "_PART", part)
    module, x = layer(256, 320, torch.bfloat16, transposed), torch.randn(40, 256).bfloat16()
    with torch.no_grad():
        assert_rounded_once(module(x), exact(module, x), torch.bfloat16)


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_an_activation_reads_the_rounded_product(activation: str) -> None:
    up, down = layer(64, 128, torch.bfloat16, True), layer(128, 64, torch.bfloat16, True)
    x = torch.randn(5, 64).bfloat16()
    inner = exact(up, x).bfloat16()
    inner = F.relu(inner) if activation == "relu" else F.gelu(inner, approximate="tanh")
    with torch.no_grad():
        got = feed_forward(x, up, get_activation(activation), down)
    torch.testing.assert_close(got.double(), exact(down, inner), rtol=2**-6, atol=2**-6)


@TRANSPOSED
@DTYPES
def test_autocast_does_not_round_weights(dtype: torch.dtype, transposed: bool) -> None:
    module, x = layer(256, 320, torch.float32, transposed), torch.randn(3, 256)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        assert_rounded_once(module(x), exact(module, x), dtype)


@DTYPES
def test_matmul_rounds_once(dtype: torch.dtype) -> None:
    a, b = torch.randn(2, 3, 40, 64).to(dtype).requires_grad_(), torch.randn(2, 3, 64, 50).to(dtype)
    got, want = widened.matmul(a, b), a.double() @ b.double()
    assert_rounded_once(got, want, dtype)
    (by_a,) = torch.autograd.grad(got, a, torch.ones_like(got))
    assert_rounded_once(by_a, torch.ones(want.shape, dtype=torch.double) @ b.double().transpose(-1, -2), dtype)


def test_what_watches_sees_a_layers_own_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened, "linear", lambda *given: pytest.fail("widened"))
    module, x = layer(256, 320, torch.bfloat16, False), torch.randn(40, 256).bfloat16()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    assert counter.get_total_flops() == 2 * 40 * 256 * 320
    assert not widened.is_widened(x.to("meta"), module.weight)
    assert not widened.is_widened(x, module.weight.float())  # torch names the two types
