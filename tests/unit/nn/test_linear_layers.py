"""The two linear layers: what they compute, fused or not, and shrinking them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptrio.nn.activations import get_activation
from gptrio.nn.fast_call import skip_hook_dispatch
from gptrio.nn.linear import Conv1D, Linear, feed_forward, is_known_linear, keep_inputs, keep_outputs, weight_view
from gptrio.quantization.native import QuantizedLinear


def layer_of(kind: str, inputs: int, outputs: int) -> Any:
    layer = Conv1D(outputs, inputs) if kind == "Conv1D" else Linear(inputs, outputs)
    nn.init.normal_(layer.bias)
    return layer


def matrix_of(layer: Any) -> Tensor:
    """(in, out)."""
    weight: Tensor = layer.weight if isinstance(layer, Conv1D) else layer.weight.T
    return weight.double()


@pytest.mark.parametrize("kind", ["Conv1D", "Linear"])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 5, 3)])
def test_product(kind: str, shape: tuple[int, ...]) -> None:
    layer, x = layer_of(kind, 3, 4), torch.randn(shape)
    expected = x.double() @ matrix_of(layer) + layer.bias
    torch.testing.assert_close(layer(x).double(), expected.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("kind", ["Conv1D", "Linear", "nn.Linear"])
def test_a_view_says_how_a_weight_is_stored(kind: str, group: int | None) -> None:
    layer = nn.Linear(64, 5) if kind == "nn.Linear" else layer_of(kind, 64, 5)
    view = weight_view(layer)
    assert is_known_linear(layer) and view.weight is layer.weight and view.bias is layer.bias and view.scale is None
    assert (view.inputs, view.outputs, view.is_in_out) == (64, 5, kind == "Conv1D")
    quantized = QuantizedLinear(layer, group)
    view = weight_view(quantized)
    assert is_known_linear(quantized) and view.weight is quantized.weight and view.scale is quantized.weight_scale
    assert (view.inputs, view.outputs, view.is_in_out, view.group, view.bias) == (64, 5, False, group, layer.bias)


@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_new", "silu"])
def test_feed_forward_of_codes_is_down_act_up(group: int | None, name: str) -> None:
    up, down, act = QuantizedLinear(layer_of("Conv1D", 64, 6), group), layer_of("Linear", 6, 3), get_activation(name)
    x = torch.randn(2, 5, 64)
    with torch.no_grad():
        expected = down(act(up(x)))
        with skip_hook_dispatch(True):
            torch.testing.assert_close(feed_forward(x, up, act, down), expected)


@pytest.mark.parametrize("kind", ["Conv1D", "Linear"])
@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_new", "silu", "tanh"])
def test_feed_forward_is_down_act_up(kind: str, name: str) -> None:
    up, down, act = layer_of(kind, 3, 6), layer_of(kind, 6, 3), get_activation(name)
    x = torch.randn(2, 5, 3)
    expected = down(act(up(x)))
    torch.testing.assert_close(feed_forward(x, up, act, down), expected)
    with skip_hook_dispatch():
        torch.testing.assert_close(feed_forward(x, up, act, down), expected)


def test_feed_forward_calls_what_others_have_put_in_place() -> None:
    class Doubled(Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    assert not is_known_linear(Doubled(3, 6))
    up, down = Doubled(3, 6), Linear(6, 3)
    x = torch.randn(2, 3)
    with skip_hook_dispatch():
        torch.testing.assert_close(feed_forward(x, up, nn.ReLU(), down), down(torch.relu(up(x))))


@pytest.mark.parametrize("kind", ["Conv1D", "Linear"])
def test_layers_shrink_to_chosen_features(kind: str) -> None:
    layer, x = layer_of(kind, 5, 6), torch.randn(2, 5)
    layer.weight.requires_grad_(False)
    index = torch.tensor([4, 0, 2])
    whole = layer(x)
    keep_outputs(layer, index)
    torch.testing.assert_close(layer(x), whole[:, index])
    masked = torch.zeros_like(x)
    masked[:, index] = x[:, index]
    expected = layer(masked)
    keep_inputs(layer, index)
    torch.testing.assert_close(layer(x[:, index]), expected)
    assert not layer.weight.requires_grad
    assert layer.bias.requires_grad
    sizes = (layer.nx, layer.nf) if kind == "Conv1D" else (layer.in_features, layer.out_features)
    assert sizes == (3, 3)


def test_conv1d_shows_its_widths() -> None:
    assert repr(Conv1D(4, 3)) == "Conv1D(nf=4, nx=3)"
