"""Linear layers under autograd: value and gradients of both orders against plain products, and what is kept."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from gptrio.kernels import differentiable, recompute, widened
from gptrio.kernels.linear import linear
from gptrio.nn.activations import get_activation
from gptrio.nn.fast_call import LayerNorm
from gptrio.nn.linear import Conv1D, Linear, feed_forward

ROWS, INNER, OUTER = 40, 256, 320
EMULATED = pytest.mark.parametrize("is_emulated", [False, True], ids=["bf16", "emulated bf16"])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs that the products of this module were called with."""
    seen, real = [], differentiable.linear

    def noted(x: Tensor, *rest: Any) -> Tensor:
        seen.append(tuple(x.shape))
        return real(x, *rest)

    monkeypatch.setattr(differentiable, "linear", noted)
    return seen


def layer_of(transposed: bool, bias: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    module = Conv1D(OUTER, INNER) if transposed else Linear(INNER, OUTER, bias=bias)
    nn.init.normal_(module.weight, std=INNER**-0.5)
    return module.to(dtype)


def exact(x: Tensor, layer: Any) -> Tensor:
    """The product in float64."""
    weight = layer.weight.double()
    bias = 0 if layer.bias is None else layer.bias.double()
    return x.double() @ (weight if isinstance(layer, Conv1D) else weight.t()) + bias


def gradients(out: Tensor, by_out: Tensor, inputs: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, inputs, by_out.to(out.dtype), **options)


def assert_near(actual: Tensor, expected: Tensor, share: float) -> None:
    """Compare by the largest expected value."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs().max()
    assert error <= share * expected.double().abs().max(), (error, expected.abs().max())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(ROWS, INNER), (2, ROWS, INNER)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients_are_the_products(transposed: bool, shape: tuple[int, ...], bias: bool, calls: Any) -> None:
    layer, x = layer_of(transposed, bias), torch.randn(shape, requires_grad=True)
    out, expected = layer(x), exact(x, layer)
    assert calls == [shape] and out.dtype is torch.float32
    by_out, inputs = torch.randn(out.shape), [x, *layer.parameters()]
    assert_near(out, expected, 1e-6)
    found, wanted = gradients(out, by_out, inputs), gradients(expected, by_out, inputs)
    for mine, its in zip(found, wanted, strict=True):
        assert mine.dtype is its.dtype is torch.float32
        assert_near(mine, its, 1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_of_second_order(transposed: bool, calls: Any) -> None:
    layer, x = layer_of(transposed), torch.randn(ROWS, INNER, requires_grad=True)
    norm = LayerNorm(INNER)
    nn.init.normal_(norm.weight)
    inputs = [x, *norm.parameters(), *layer.parameters()]
    found = []
    for way in (lambda: layer(norm(x)), lambda: exact(F.layer_norm(x, (INNER,), norm.weight, norm.bias), layer)):
        first = torch.autograd.grad(way().square().mean(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    assert len(calls) == 1
    for mine, its in zip(*found, strict=True):
        assert_near(mine, its, 2e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_only_what_is_needed_is_computed_and_kept(transposed: bool, calls: Any) -> None:
    layer, x = layer_of(transposed), torch.randn(ROWS, INNER, requires_grad=True)
    layer.weight.requires_grad_(False)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = layer(x)
    assert [t.shape for t in kept] == [layer.weight.shape]
    by_x, by_bias = gradients(out, torch.ones(out.shape), [x, layer.bias])
    assert_near(by_x, exact(torch.eye(INNER), layer).sub(layer.bias).sum(1).expand(ROWS, -1), 1e-6)
    assert torch.equal(by_bias, torch.full((OUTER,), float(ROWS)))
    assert len(calls) == 1


@EMULATED
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_bfloat16_is_rounded_once(
    is_emulated: bool, transposed: bool, is_autocast: bool, calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widened, "has_no_instructions", lambda dtype: is_emulated and dtype.itemsize == 2)
    dtype = torch.float32 if is_autocast else torch.bfloat16
    layer, x = layer_of(transposed, dtype=dtype), torch.randn(ROWS, INNER, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        out = layer(x)
    assert bool(calls) is is_emulated and out.dtype is torch.bfloat16
    expected = exact(x, layer)
    by_out, inputs = torch.randn(out.shape).bfloat16(), [x, *layer.parameters()]
    found, wanted = gradients(out, by_out, inputs), gradients(expected, by_out, inputs)
    assert_near(out, expected, 2**-8 if is_emulated else 2**-6)
    for mine, its in zip(found, wanted, strict=True):
        assert mine.dtype is dtype
        assert_near(mine, its, (1e-6 if is_autocast else 2**-8) if is_emulated else 2**-5)


@EMULATED
def test_small_products_are_widened_where_they_are_emulated(
    is_emulated: bool, calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widened, "has_no_instructions", lambda dtype: is_emulated and dtype.itemsize == 2)
    layer, x = Linear(48, 5).bfloat16(), torch.randn(2, 48, dtype=torch.bfloat16, requires_grad=True)
    out = layer(x)
    assert bool(calls) is is_emulated
    assert_near(out, exact(x, layer), 2**-8 if is_emulated else 2**-6)


def kept_shapes(run: Callable[[], Tensor]) -> list[tuple[int, ...]]:
    """Shapes of the tensors that a backward pass of a result keeps, without the weights; shared ones count once."""
    kept: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        run()
    return sorted(tuple(t.shape) for t in kept.values() if t.dim() == 3 and t.shape[-1] > 1)


@pytest.mark.parametrize("name", ["gelu", "gelu_new"])
def test_a_norm_and_gelu_are_computed_again(name: str) -> None:
    norm, up, act, down = LayerNorm(INNER), layer_of(True), get_activation(name), Conv1D(INNER, OUTER)
    nn.init.normal_(norm.weight)
    x = torch.randn(2, ROWS, INNER, requires_grad=True)
    parts = nn.ModuleList([norm, up, act, down])
    inputs = [x, *parts.parameters()]

    def run() -> Tensor:
        return feed_forward(norm(x), up, act, down)

    assert kept_shapes(run) == [(2, ROWS, INNER), (2, ROWS, OUTER)]  # the norm's input and GELU's
    hidden = F.gelu(exact(F.layer_norm(x, (INNER,), norm.weight, norm.bias), up), approximate=act.approximate)
    expected, out = exact(hidden, down), run()
    by_out = torch.randn(out.shape)
    for mine, its in zip(gradients(out, by_out, inputs), gradients(expected, by_out, inputs), strict=True):
        assert_near(mine, its, 2e-6)


def test_what_a_hook_puts_in_place_of_a_norm_counts() -> None:
    norm, layer = LayerNorm(INNER), layer_of(False)
    x = torch.randn(ROWS, INNER, requires_grad=True)
    for change in (lambda out: out * 2, lambda out: out.mul_(2)):
        handle = norm.register_forward_hook(lambda module, given, out, change=change: change(out))
        out, expected = layer(norm(x)), exact(2 * F.layer_norm(x, (INNER,)), layer)
        handle.remove()
        found, wanted = (gradients(y, torch.ones(y.shape), [x, layer.weight]) for y in (out, expected))
        for mine, its in zip(found, wanted, strict=True):
            assert_near(mine, its, 1e-5)


def test_what_is_noted_of_a_result_is_not_saved_with_it_and_goes_with_it() -> None:
    out, file = LayerNorm(INNER)(torch.randn(ROWS, INNER)), io.BytesIO()
    assert recompute.recipe_of(out) is not None
    torch.save(out, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), out) and len(file.getvalue()) < 2 * out.nbytes
    before = len(recompute._recipes)
    del out
    assert len(recompute._recipes) == before - 1


def test_hooks_of_an_activation_count() -> None:
    up, act, down = layer_of(False), get_activation("gelu_new"), Conv1D(INNER, OUTER)
    act.register_forward_hook(lambda module, given, out: out + 1)
    x = torch.randn(ROWS, INNER)
    feed_forward(x, up, act, down).sum().backward()
    expected = (F.gelu(exact(x, up), approximate="tanh") + 1).sum(0)[:, None].expand(-1, INNER)
    assert_near(down.weight.grad, expected, 2e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_have_the_same_gradients(reentrant: bool) -> None:
    norm, up, act, down = LayerNorm(INNER), layer_of(True), get_activation("gelu_new"), Conv1D(INNER, OUTER)
    parts, x = nn.ModuleList([norm, up, act, down]), torch.randn(ROWS, INNER, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        return feed_forward(norm(x), up, act, down)

    inputs = [x, *parts.parameters()]
    expected = torch.autograd.grad(run(x).square().sum(), inputs)
    checkpoint(run, x, use_reentrant=reentrant).square().sum().backward()
    for mine, its in zip((t.grad for t in inputs), expected, strict=True):
        assert mine is not None and torch.equal(mine, its)


def test_an_input_changed_in_place_is_refused_as_ever() -> None:
    norm, layer = LayerNorm(INNER), layer_of(False)
    x = torch.randn(ROWS, INNER, requires_grad=True) * 1
    out = layer(norm(x))
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def under(context: Any, layer: Any, x: Tensor) -> Tensor:
    with context:
        result: Tensor = layer(x)
        return result


PLAIN: dict[str, Callable[[Any, Tensor], Any]] = {
    "no gradients": lambda layer, x: torch.no_grad()(layer)(x),
    "few rows": lambda layer, x: layer(x[:3]),
    "float64": lambda layer, x: layer.double()(x.double()),
    "vmap": lambda layer, x: torch.func.vmap(layer)(x[None]),
    "a function mode": lambda layer, x: under(torch.overrides.BaseTorchFunctionMode(), layer, x),
    "a dispatch mode": lambda layer, x: under(FlopCounterMode(display=False), layer, x),
    "dual numbers": lambda layer, x: under(torch.autograd.forward_ad.dual_level(), layer, x),
}


@pytest.mark.parametrize("case", PLAIN)
def test_other_calls_are_torchs(case: str, calls: Any) -> None:
    PLAIN[case](layer_of(False), torch.randn(ROWS, INNER))
    assert not calls


def test_errors_are_torchs() -> None:
    layer = layer_of(False)
    with pytest.raises(RuntimeError, match="dtype"):
        layer(torch.randn(ROWS, INNER, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match="shapes"):
        linear(torch.randn(ROWS, INNER + 1), layer.weight, layer.bias)
