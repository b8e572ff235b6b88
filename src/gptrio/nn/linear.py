"""The two linear layers of these families: (out, in) weights, and GPT-2's (in, out) weights."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from gptrio.kernels.linear import Activation, linear
from gptrio.nn.fast_call import FastCallModule, is_dispatch_skipped


class Linear(FastCallModule, nn.Linear):
    """`nn.Linear` whose product runs through `gptrio.kernels`.

    Attributes:
        init_gain: factor of the standard deviation that new weights are drawn with.
        fuses_activation: the forward of this very class takes the name of an activation.
    """

    init_gain = 1.0
    fuses_activation = True

    def forward(self, input: Tensor, activation: Activation = "none") -> Tensor:
        """Map (..., in) to (..., out), through `activation`."""
        return linear(input, self.weight, self.bias, activation=activation)


class Conv1D(FastCallModule):
    """A linear layer that stores its weight (in, out), as the released GPT-2 files do.

    Args:
        nf: output width.
        nx: input width.
    """

    init_gain = 1.0
    fuses_activation = True

    def __init__(self, nf: int, nx: int) -> None:
        """Create a weight (nx, nf) drawn from N(0, 0.02) and a zero bias (nf,)."""
        nn.Module.__init__(self)  # not the next class's: PEFT may have been told of this one (models.adapters)
        self.nf = nf
        self.nx = nx
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.empty(nf))
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    @property
    def in_features(self) -> int:
        """Input width, under the name that `nn.Linear` has for it."""
        return self.nx

    @property
    def out_features(self) -> int:
        """Output width, under the name that `nn.Linear` has for it."""
        return self.nf

    def forward(self, x: Tensor, activation: Activation = "none") -> Tensor:
        """Map (..., nx) to (..., nf), through `activation`."""
        return linear(x, self.weight, self.bias, transposed=True, activation=activation)

    def extra_repr(self) -> str:
        """Widths, for `repr`."""
        return f"nf={self.nf}, nx={self.nx}"


def filled_linear(weight: Tensor, bias: nn.Parameter | None, transposed: bool = False) -> Linear | Conv1D:
    """A linear layer around a weight (out, in) and a bias (out,): a `Conv1D` if `transposed`."""
    outer, inner = weight.shape
    with torch.device("meta"):
        layer = Conv1D(outer, inner) if transposed else Linear(inner, outer, bias=bias is not None)
    layer.weight = nn.Parameter(weight.t().contiguous() if transposed else weight)
    layer.register_parameter("bias", bias)
    return layer


def feed_forward(x: Tensor, up: nn.Module, act: nn.Module, down: nn.Module) -> Tensor:
    """`down(act(up(x)))`; in `skip_hook_dispatch`, where nobody sees it, the activation is a part of `up`'s product.

    Layers that others have put in place of ours (adapters, quantized ones) are called as plain modules.
    """
    fuses = is_dispatch_skipped() and vars(type(up)).get("fuses_activation")
    fused = _fused_name(act) if fuses else "none"
    hidden = act(up(x)) if fused == "none" else up(x, fused)
    return cast(Tensor, down(hidden))


def _fused_name(act: nn.Module) -> Activation:
    """Name of an activation that `linear` can apply itself, or "none"."""
    if type(act) is nn.GELU:
        return "gelu_tanh" if act.approximate == "tanh" else "gelu_erf"
    return "relu" if type(act) is nn.ReLU else "none"


def keep_outputs(layer: nn.Module, index: Tensor) -> None:
    """Shrink a linear layer in place to the output features in `index` (n,)."""
    _keep(layer, index, axis=1 if isinstance(layer, Conv1D) else 0)
    if layer.bias is not None:
        layer.bias = _select(cast(nn.Parameter, layer.bias), index, 0)


def keep_inputs(layer: nn.Module, index: Tensor) -> None:
    """Shrink a linear layer in place to the input features in `index` (n,)."""
    _keep(layer, index, axis=0 if isinstance(layer, Conv1D) else 1)


def _keep(layer: nn.Module, index: Tensor, axis: int) -> None:
    weight = layer.weight = _select(cast(nn.Parameter, layer.weight), index, axis)
    if isinstance(layer, Conv1D):
        layer.nx, layer.nf = weight.shape
    else:
        cast(Linear, layer).out_features, cast(Linear, layer).in_features = weight.shape


def _select(parameter: nn.Parameter, index: Tensor, axis: int) -> nn.Parameter:
    chosen = parameter.detach().index_select(axis, index.to(parameter.device))
    return nn.Parameter(chosen, requires_grad=parameter.requires_grad)
