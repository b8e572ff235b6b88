"""The fast products against float64, and the conditions under which they are left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptrio.kernels import linear as kernel
from gptrio.kernels.linear import linear, packed_inference, packing_disabled
from gptrio.kernels.packing import can_pack, packed_bytes
from gptrio.nn.linear import Conv1D, Linear

ERROR = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}  # relative to the largest result
ACTIVATIONS = {
    "none": lambda t: t,
    "relu": F.relu,
    "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
    "gelu_erf": F.gelu,
}


def layer(inner: int, outer: int, dtype: torch.dtype, transposed: bool, bias: bool = True) -> nn.Module:
    torch.manual_seed(inner + outer)
    module = Conv1D(outer, inner) if transposed else Linear(inner, outer, bias=bias)
    nn.init.normal_(module.weight, std=inner**-0.5)
    if module.bias is not None:
        nn.init.normal_(module.bias)
    return module.to(dtype).eval()


def exact(module: nn.Module, x: Tensor) -> Tensor:
    weight = module.weight.double() if isinstance(module, Conv1D) else module.weight.double().T
    out = x.double() @ weight
    return out if module.bias is None else out + module.bias.double()


def assert_close(got: Tensor, want: Tensor) -> None:
    assert got.dtype in ERROR and got.shape == want.shape
    assert (got.double() - want).abs().max() <= ERROR[got.dtype] * want.abs().max()


@pytest.mark.parametrize("dtype", list(ERROR), ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 33])
def test_fast_product_equals_float64(dtype: torch.dtype, transposed: bool, rows: int) -> None:
    module = layer(299, 517, dtype, transposed)
    x = torch.randn(rows, 299).to(dtype)
    with torch.inference_mode(), packed_inference(module):
        assert_close(module(x), exact(module, x))


@pytest.mark.parametrize("dtype", list(ERROR), ids=str)
@pytest.mark.parametrize("rows", [1, 4, 8, 33])
def test_packed_product_equals_float64(dtype: torch.dtype, rows: int) -> None:
    if not can_pack(dtype):
        pytest.skip(f"oneDNN cannot pack {dtype} here")
    for transposed in (False, True):
        module = layer(300, 516, dtype, transposed)
        x = torch.randn(2, rows, 300).to(dtype)
        with torch.inference_mode(), packed_inference(module):
            assert_close(module(x), exact(module, x))
        assert packed_bytes(module) >= module.weight.nbytes


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("rows", [0, 1, 7, 40])
@pytest.mark.parametrize("fast", [False, True])
def test_fusions_equal_the_separate_operations(activation: str, rows: int, fast: bool) -> None:
    for transposed in (False, True):
        module = layer(256, 320, torch.float32, transposed)
        x = torch.randn(rows, 256)
        with torch.no_grad():
            want = ACTIVATIONS[activation](exact(module, x))
            with packed_inference(module) if fast else torch.no_grad():
                got = linear(x, module.weight, module.bias, transposed=transposed, activation=activation)
        torch.testing.assert_close(got.double(), want, atol=5e-6, rtol=5e-6)


@pytest.mark.parametrize("dtype", list(ERROR), ids=str)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("rows", [2, 40])
def test_fast_products_without_packs_equal_float64(dtype: torch.dtype, activation: str, rows: int) -> None:
    for transposed in (False, True):
        module = layer(256, 320, dtype, transposed)
        x = torch.randn(rows, 256).to(dtype)
        with torch.no_grad(), packed_inference(module), packing_disabled():
            got = linear(x, module.weight, module.bias, transposed=transposed, activation=activation)
        assert_close(got, ACTIVATIONS[activation](exact(module, x)))
        assert packed_bytes(module) == 0


@pytest.mark.parametrize("shape", [(1000,), (1, 641), (3, 450)])
def test_rows_in_parts_equal_float64(shape: tuple[int, ...]) -> None:
    module = layer(256, 320, torch.bfloat16, True)
    x = torch.randn(*shape, 256).bfloat16()
    with torch.no_grad(), packed_inference(module), packing_disabled():
        got = linear(x, module.weight, module.bias, transposed=True)
        assert_close(got, exact(module, x))


@pytest.mark.parametrize("dtype", list(ERROR), ids=str)
def test_activations_hold_for_extreme_values(dtype: torch.dtype) -> None:
    module = layer(256, 320, dtype, False, bias=False)
    x = torch.zeros(1, 256, dtype=dtype)
    x[0, 0] = 100
    nn.init.zeros_(module.weight)
    with torch.no_grad():
        module.weight[:7, 0] = torch.tensor([-1.0, -0.3, -1e-3, 0.0, 1e-3, 0.3, 1.0])
        for name, function in ACTIVATIONS.items():
            with packed_inference(module):
                got = linear(x, module.weight, None, activation=name)  # type: ignore[arg-type]
            torch.testing.assert_close(got.float(), function(x.float() @ module.weight.float().T), atol=2e-6, rtol=8e-3)


def test_nan_and_infinity_pass_through() -> None:
    module = layer(256, 320, torch.float32, False)
    x = torch.randn(2, 256)
    x[0, 3] = float("nan")
    with torch.no_grad(), packed_inference(module):
        for name in ACTIVATIONS:
            got = linear(x, module.weight, module.bias, activation=name)  # type: ignore[arg-type]
            assert got[0].isnan().all() and got[1].isfinite().all()


def test_strided_rows_are_taken_as_they_are() -> None:
    module = layer(256, 320, torch.float32, True)
    x = torch.randn(3, 5, 256)[:, -1]
    with torch.inference_mode(), packed_inference(module):
        assert_close(module(x), exact(module, x))


def test_plain_forward_keeps_torchs_numbers() -> None:
    for transposed in (False, True):
        module, x = layer(256, 320, torch.float32, transposed), torch.randn(3, 256)
        with torch.no_grad():
            want = torch.addmm(module.bias, x, module.weight) if transposed else F.linear(x, module.weight, module.bias)
            assert torch.equal(module(x), want)
    assert packed_bytes(module) == 0


@pytest.mark.parametrize("fast", [True, False])
def test_one_float32_row_is_packed_only_where_torch_is_slow(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "needs_no_pack", lambda rows, dtype: fast)
    module, x = layer(256, 320, torch.float32, False), torch.randn(1, 256)
    with torch.no_grad(), packed_inference(module):
        assert_close(module(x), exact(module, x))
    assert (packed_bytes(module) == 0) == fast


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("fast", [True, False])
def test_float32_rows_without_a_pack_go_where_they_are_fastest(
    fast: bool, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "mkl_is_fast", lambda: fast)
    products, real = [], kernel.fused_product
    monkeypatch.setattr(kernel, "fused_product", lambda *given: products.append(1) or real(*given))
    module, x = layer(256, 320, torch.float32, transposed), torch.randn(40, 256)
    with torch.no_grad(), packed_inference(module), kernel.packing_disabled():
        assert_close(module(x), exact(module, x))
    assert bool(products) == (not fast) and packed_bytes(module) == 0


def test_gradients_never_meet_a_pack() -> None:
    module, x = layer(256, 320, torch.float32, False), torch.randn(40, 256, requires_grad=True)
    with packed_inference(module):
        module(x).sum().backward()
    assert packed_bytes(module) == 0 and x.grad is not None and module.weight.grad is not None


def test_autocast_keeps_its_meaning() -> None:
    module, x = layer(256, 320, torch.float32, False), torch.randn(40, 256)
    with torch.no_grad(), packed_inference(module), torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype is torch.bfloat16
    assert packed_bytes(module) == 0


def test_functorch_sees_plain_products() -> None:
    module, x = layer(256, 320, torch.float32, False), torch.randn(4, 2, 256)
    with torch.no_grad(), packed_inference(module):
        torch.testing.assert_close(torch.func.vmap(module)(x), module(x))


def test_subclass_and_other_dtype_are_left_alone() -> None:
    module, x = layer(256, 320, torch.float32, False), torch.randn(40, 256)

    class Marked(Tensor):
        pass

    with torch.no_grad(), packed_inference(module):
        assert type(module(x.as_subclass(Marked))) is Marked
        with pytest.raises(RuntimeError, match="dtype"):
            module(x.double())
    assert packed_bytes(module) == 0


def test_hooks_run_in_the_fast_path() -> None:
    module, x, seen = layer(256, 320, torch.float32, False), torch.randn(1, 256), []
    module.register_forward_hook(lambda *event: seen.append(event[2].shape))
    with torch.no_grad(), packed_inference(module):
        module(x)
    assert seen == [(1, 320)]


def test_compiled_graph_is_whole_and_plain() -> None:
    module, x = layer(256, 320, torch.float32, False), torch.randn(40, 256)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    with torch.no_grad(), packed_inference(module):
        assert torch.equal(compiled(x), F.linear(x, module.weight, module.bias))
    assert packed_bytes(module) == 0


def test_context_ends_and_nests() -> None:
    module, x = layer(256, 320, torch.float32, False), torch.randn(40, 256)
    with torch.no_grad():
        with packed_inference(module):
            with packed_inference(module):
                module(x)
            packed = packed_bytes(module)
            module(x)
        module.weight.add_(1)
        module(x)
    assert packed == packed_bytes(module) == module.weight.nbytes


def test_copies_share_nothing() -> None:
    module, x = layer(256, 320, torch.float32, False), torch.randn(40, 256)
    with torch.no_grad(), packed_inference(module):
        module(x)
        other = copy.deepcopy(module)
        assert packed_bytes(other) == 0
        other.weight.mul_(2)
        assert_close(other(x), exact(other, x))
