"""DoLa: score tokens by how much the last layer favours them over an early one.

Source: Chuang et al., "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models",
arXiv:2309.03883. Shapes: `B` rows, `E` early layers, `V` vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from gptrio.errors import OptionError
from gptrio.generation.loop import decode
from gptrio.generation.outputs import GenerateDecoderOnlyOutput
from gptrio.generation.state import GenerationState

RELATIVE_TOP = 0.1  # tokens below this share of the likeliest one's probability are never chosen
BELOW = -1e-3  # early score of such a token, as in the authors' code


def dola_decode(state: GenerationState) -> Tensor | GenerateDecoderOnlyOutput:
    """Greedy search or sampling from contrasted scores."""
    layers = early_layers(state.model.config, state.config.dola_layers)
    head = cast(nn.Module, state.model.get_output_embeddings())

    def refine(output: Any, logits: Tensor) -> Tensor:
        states = torch.stack([output.hidden_states[layer][:, -1] for layer in layers])  # (E, B, C)
        return contrast(logits, head(states).float())

    return decode(state, refine, output_hidden_states=True)


def early_layers(config: Any, asked: str | list[int] | None) -> list[int]:
    """Indices of the hidden states to contrast with the last.

    Args:
        config: the model's configuration.
        asked: "low" or "high" for every other layer of the lower or upper half (of 20 layers in models of more than
            40), or indices.

    Raises:
        OptionError: the model has no such layers.
    """
    last: int = config.num_hidden_layers
    if not isinstance(asked, str):
        layers = [index for index in asked or [] if 0 <= index < last]
        if not layers:
            raise OptionError(f"dola_layers={asked!r} names no layer below the model's last, {last}")
        return layers
    first = 0
    if config.tie_word_embeddings and last > 1:  # scores of the embeddings themselves would only reproduce the input
        first = min(last - 1, 2)
    if asked == "high":
        return list(range(last // 2 if last <= 40 else last - 20, last, 2))
    return list(range(first, last // 2 if last <= 40 else 20, 2)) or [first]


def contrast(final: Tensor, early: Tensor) -> Tensor:
    """Scores (B, V): log-probabilities of the last layer less those of the early layer that differs most from it.

    Each row has its own early layer, so that it does not depend on the others.

    Args:
        final: (B, V) logits of the last layer.
        early: (E, B, V) logits of the early ones.
    """
    final, early = final.log_softmax(-1), early.log_softmax(-1)
    mean = (final.exp() + early.exp()) / 2  # (E, B, V)
    divergence = (torch.xlogy(mean, mean) * 2 - mean * (final + early)).mean(-1)  # (E, B), of Jensen-Shannon's kind
    layer = divergence.argmax(0)  # (B,)
    base = early[layer, torch.arange(len(layer), device=layer.device)]
    unlikely = final < final.amax(-1, keepdim=True) + math.log(RELATIVE_TOP)
    return final.masked_fill(unlikely, float("-inf")) - base.masked_fill(unlikely, BELOW)
