"""Removing attention heads from a model (Michel et al., 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from gptrio.errors import InputError, UnsupportedError
from gptrio.nn.linear import Conv1D, Linear, filled_linear


def prune(backbone: Any, heads_to_prune: Mapping[int, Iterable[int]]) -> dict[int, set[int]]:
    """Remove heads from the attention of a backbone's blocks.

    Args:
        backbone: its `blocks` have a `spec()`, and their `self_attention` has `all_heads`, `pruned_heads` and
            `keep_heads(kept)`.
        heads_to_prune: {layer: heads}, numbered as in the unpruned model; negative layers count from the last one.
            Heads that are removed already are ignored.

    Returns:
        The given heads, with layers counted from the first one.

    Raises:
        InputError: no such layer or head, or no head would be left.
        UnsupportedError: a projection's weight is quantized, wrapped or computed; nothing is removed then.
    """
    layers = len(backbone.blocks)
    asked: dict[int, set[int]] = {}
    for layer, heads in heads_to_prune.items():
        if not -layers <= layer < layers:
            raise InputError(f"layer {layer} to prune does not exist; the model has {layers} layers")
        asked.setdefault(layer % layers, set()).update(heads)
    for layer in asked:
        _check_weights(backbone.blocks[layer].spec(), layer)
    for layer, chosen in asked.items():
        _prune_layer(backbone.blocks[layer].self_attention, chosen, layer)
    return asked


def _check_weights(parts: Any, layer: int) -> None:
    for part in (*parts.projections, parts.output):
        if part._parameters.get("weight") is None:
            raise UnsupportedError(
                f"heads of layer {layer} cannot be removed from a {type(part).__name__}, which has no weight of its "
                "own to shrink; prune before quantizing, adding adapters or parametrizing"
            )


def _prune_layer(attention: Any, heads: set[int], layer: int) -> None:
    total, gone = attention.all_heads, attention.pruned_heads
    wrong = sorted(head for head in heads if not 0 <= head < total)
    if wrong:
        raise InputError(f"heads {wrong} of layer {layer} do not exist; it has heads 0 to {total - 1}")
    left = [head for head in range(total) if head not in gone]
    kept = [index for index, head in enumerate(left) if head not in heads]
    if not kept:
        raise InputError(f"pruning heads {sorted(heads)} would leave layer {layer} without heads; keep at least one")
    if len(kept) < len(left):
        attention.keep_heads(kept)
        attention.pruned_heads = gone | heads


def head_features(kept: list[int], width: int) -> Tensor:
    """(len(kept) * width,) indices of the features of the heads with the indices `kept`, each `width` wide."""
    return (torch.tensor(kept, device="cpu")[:, None] * width + torch.arange(width, device="cpu")).flatten()


def find_pruneable_heads_and_indices(
    heads: Iterable[int], n_heads: int, head_size: int, already_pruned_heads: set[int]
) -> tuple[set[int], Tensor]:
    """The heads that are still there to be removed, and the indices of the features that stay (n,).

    Args:
        heads: to remove, numbered as in the unpruned model.
        n_heads: that are left now.
        head_size: features of a head.
        already_pruned_heads: heads that are gone, which are passed over.
    """
    wanted = set(heads) - already_pruned_heads
    places = {head - sum(gone < head for gone in already_pruned_heads) for head in wanted}
    return wanted, head_features([place for place in range(n_heads) if place not in places], head_size)


def prune_linear_layer(layer: nn.Linear, index: Tensor, dim: int = 0) -> nn.Linear:
    """A new layer with the outputs in `index` (n,) of a linear one, or for `dim=1` with those inputs."""
    return cast(Linear, filled_linear(*_kept(layer.weight, layer.bias, index, dim)))


def prune_conv1d_layer(layer: Conv1D, index: Tensor, dim: int = 1) -> Conv1D:
    """A new layer with the outputs in `index` (n,) of a `Conv1D`, or for `dim=0` with those inputs."""
    return cast(Conv1D, filled_linear(*_kept(layer.weight.t(), layer.bias, index, 1 - dim), transposed=True))


def prune_layer(layer: nn.Linear | Conv1D, index: Tensor, dim: int | None = None) -> nn.Linear | Conv1D:
    """A new layer with the features in `index` (n,) of `layer`.

    Args:
        layer: stays as it is.
        index: the features to keep.
        dim: the axis of the weight that they are on; that of outputs when None.

    Raises:
        UnsupportedError: a layer of another class.
    """
    if isinstance(layer, nn.Linear):
        return prune_linear_layer(layer, index, dim=0 if dim is None else dim)
    if isinstance(layer, Conv1D):
        return prune_conv1d_layer(layer, index, dim=1 if dim is None else dim)
    raise UnsupportedError(f"cannot prune a {type(layer).__name__}; expected a torch.nn.Linear or a Conv1D")


def _kept(weight: Tensor, bias: Tensor | None, index: Tensor, axis: int) -> tuple[Tensor, nn.Parameter | None]:
    """Parts of a weight (out, in) and a bias (out,), copied; `index` is of outputs for axis 0, of inputs for axis 1."""
    index = index.to(weight.device)
    kept = weight.detach().index_select(axis, index)
    if bias is None:
        return kept, None
    return kept, nn.Parameter(bias.detach()[index] if axis == 0 else bias.detach().clone())
