"""Removing attention heads from a model (Michel et al., 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gptrio.errors import InputError, UnsupportedError


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
