"""The two linear layers of these families: (out, in) weights, and GPT-2's (in, out) weights."""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptrio.kernels.linear import Activation, linear
from gptrio.kernels.quantized import quantized_linear
from gptrio.kernels.recompute import remember
from gptrio.nn.activations import GELUS
from gptrio.nn.fast_call import FastCallModule, is_dispatch_skipped, is_watched


class LowRankUpdate(NamedTuple):
    """What an adapter adds to a product (LoRA; Hu et al., 2021): `scaling * B @ (A @ x)`.

    Attributes:
        a: (rank, in).
        b: (out, rank).
        scaling: a factor.
    """

    a: Tensor
    b: Tensor
    scaling: float


class WeightView(NamedTuple):
    """How a linear layer stores its weight and bias.

    Attributes:
        weight: (out, in), or (in, out) if `is_in_out`; int8 codes (out, in), or uint8 (out, in / 2) for two codes each.
        bias: (out,) or None.
        is_in_out: the weight is stored (in, out), GPT-2's layout.
        scale: of codes: float32 (out,) for 8 bits, bfloat16 (out, in / group) for 4 bits; None for floats.
        group: inputs that share a scale of 4 bits; None for all other weights.
        updates: of the active adapters.
    """

    weight: Tensor
    bias: Tensor | None
    is_in_out: bool = False
    scale: Tensor | None = None
    group: int | None = None
    updates: tuple[LowRankUpdate, ...] = ()

    @property
    def inputs(self) -> int:
        """Input width."""
        return self.weight.shape[0] if self.is_in_out else self.weight.shape[1] * (1 if self.group is None else 2)

    @property
    def outputs(self) -> int:
        """Output width."""
        return self.weight.shape[1] if self.is_in_out else self.weight.shape[0]


def weight_view(layer: Any) -> WeightView:
    """How a linear layer of this package or of torch, of a subclass, or a LoRA layer of PEFT stores its weight now."""
    if is_lora(type(layer)):
        pairs = ((layer.lora_A[name], layer.lora_B[name], layer.scaling[name]) for name in active_adapters(layer))
        updates = tuple(LowRankUpdate(a.weight, b.weight, scaling) for a, b, scaling in pairs)
        return weight_view(layer.base_layer)._replace(updates=updates)
    own = getattr(layer, "weight_view", None)
    return WeightView(layer.weight, layer.bias) if own is None else cast(WeightView, own())


def is_known_linear(layer: nn.Module) -> bool:
    """Whether the forward of a layer's very class is the product that `weight_view` describes.

    A subclass that changes the forward does not inherit what its base says of it.
    """
    return type(layer) is nn.Linear or "weight_view" in vars(type(layer))


def is_lora(kind: type) -> bool:
    """Whether a class is PEFT's LoRA layer around a linear one; PEFT is not imported."""
    return (kind.__module__, kind.__name__) == ("peft.tuners.lora.layer", "Linear")


def active_adapters(layer: Any) -> list[str]:
    """Names of the adapters that a LoRA layer adds to its base layer's product: none where they are merged into it."""
    if layer.disable_adapters or layer.merged:
        return []
    return [name for name in layer.active_adapters if name in layer.lora_A]


class Linear(FastCallModule, nn.Linear):
    """`nn.Linear` whose product runs through `gptrio.kernels`.

    Attributes:
        init_gain: factor of the standard deviation that new weights are drawn with.
    """

    init_gain = 1.0

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return linear(input, self.weight, self.bias)

    def weight_view(self) -> WeightView:
        """How the weight is stored: (out, in)."""
        return WeightView(self.weight, self.bias)


class Conv1D(FastCallModule):
    """A linear layer that stores its weight (in, out), as the released GPT-2 files do.

    Args:
        nf: output width.
        nx: input width.
    """

    init_gain = 1.0

    def __init__(self, nf: int, nx: int) -> None:
        """Create a weight (nx, nf) drawn from N(0, 0.02) and a zero bias (nf,)."""
        nn.Module.__init__(self)  # not the next class's: `models.base.adapters` may have added one of PEFT's
        self.nf = nf
        self.nx = nx
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.empty(nf))
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    in_features = property(attrgetter("nx"), doc="Input width, under the name that `nn.Linear` has for it.")
    out_features = property(attrgetter("nf"), doc="Output width, under the name that `nn.Linear` has for it.")

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., nx) to (..., nf)."""
        return linear(x, self.weight, self.bias, transposed=True)

    def weight_view(self) -> WeightView:
        """How the weight is stored: (in, out)."""
        return WeightView(self.weight, self.bias, is_in_out=True)

    def extra_repr(self) -> str:
        """Widths, for `repr`."""
        return f"nf={self.nf}, nx={self.nx}"


LINEARS = (nn.Linear, Conv1D)  # layers whose weight is in full precision


def filled_linear(weight: Tensor, bias: nn.Parameter | None, transposed: bool = False) -> Linear | Conv1D:
    """A linear layer around a weight (out, in) and a bias (out,): a `Conv1D` if `transposed`."""
    outer, inner = weight.shape
    with torch.device("meta"):
        layer = Conv1D(outer, inner) if transposed else Linear(inner, outer, bias=bias is not None)
    layer.weight = nn.Parameter(weight.t().contiguous() if transposed else weight)
    layer.register_parameter("bias", bias)
    return layer


def feed_forward(x: Tensor, up: nn.Module, act: nn.Module, down: nn.Module) -> Tensor:
    """`down(act(up(x)))`; in `skip_hook_dispatch`, where no hook sees it, the activation is a part of `up`'s product.

    Layers that others have put in place of ours (adapters, quantized ones) are called as plain modules.
    """
    fused = _fused_name(act) if is_dispatch_skipped() and is_known_linear(up) else "none"
    if fused != "none":
        return cast(Tensor, down(_activated_product(x, weight_view(up), fused)))
    before = up(x)
    hidden = act(before)
    if type(act) in GELUS and not is_watched(act):
        remember(hidden, partial(F.gelu, approximate=cast(nn.GELU, act).approximate), before)
    return cast(Tensor, down(hidden))


def _activated_product(x: Tensor, view: WeightView, activation: Activation) -> Tensor:
    """`activation(x @ W + bias)` by one kernel."""
    if view.scale is None:
        return linear(x, view.weight, view.bias, transposed=view.is_in_out, activation=activation)
    bits = 8 if view.group is None else 4
    return quantized_linear(x, view.weight, view.scale, view.bias, bits=bits, activation=activation)


def _fused_name(act: nn.Module) -> Activation:
    """Name of an activation that `linear` can apply itself, or "none"."""
    if type(act) in GELUS:
        return "gelu_tanh" if cast(nn.GELU, act).approximate == "tanh" else "gelu_erf"
    return "relu" if type(act) is nn.ReLU else "none"


def keep_outputs(layer: nn.Module, index: Tensor) -> None:
    """Shrink a linear layer in place to the output features in `index` (n,)."""
    _keep(layer, index, axis=1 if weight_view(layer).is_in_out else 0)
    if layer.bias is not None:
        layer.bias = _select(cast(nn.Parameter, layer.bias), index, 0)


def keep_inputs(layer: nn.Module, index: Tensor) -> None:
    """Shrink a linear layer in place to the input features in `index` (n,)."""
    _keep(layer, index, axis=0 if weight_view(layer).is_in_out else 1)


def _keep(layer: Any, index: Tensor, axis: int) -> None:
    layer.weight = _select(layer.weight, index, axis)
    view = weight_view(layer)
    names = ("nx", "nf") if view.is_in_out else ("in_features", "out_features")
    for name, size in zip(names, (view.inputs, view.outputs), strict=True):
        setattr(layer, name, size)


def _select(parameter: nn.Parameter, index: Tensor, axis: int) -> nn.Parameter:
    chosen = parameter.detach().index_select(axis, index.to(parameter.device))
    return nn.Parameter(chosen, requires_grad=parameter.requires_grad)
