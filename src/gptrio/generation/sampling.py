"""Choose the next token of each row: the most likely one, or one drawn from the distribution.

Shapes: `B` rows, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptrio.generation.processors.base import NEG_INF
from gptrio.generation.processors.sampling import below_min_p, outside_top_k, outside_top_p

Generators = torch.Generator | Sequence[torch.Generator | None] | None  # one for all rows, or one for each


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn. Each value is one number for all rows, or a tensor (B, 1) with one for each row.

    Attributes:
        temperature: divides the scores; 0 takes the most likely token.
        top_k: number of likeliest tokens to draw from; 0 for all.
        top_p: draw from the fewest likeliest tokens whose probabilities reach this, from 0 to 1.
        min_p: draw from the tokens that are at least this many times as likely as the likeliest, from 0 to 1.
    """

    temperature: float | Tensor = 1.0
    top_k: int | Tensor = 0
    top_p: float | Tensor = 1.0
    min_p: float | Tensor = 0.0

    @property
    def is_greedy(self) -> bool:
        """Whether every row takes its most likely token."""
        return not isinstance(self.temperature, Tensor) and self.temperature == 0


def sample(scores: Tensor, params: SamplingParams, generators: Generators = None) -> Tensor:
    """Choose a token for each row, each by its own parameters.

    Args:
        scores: (B, V) logits, processed by what depends on the tokens before.
        params: how to draw.
        generators: where random numbers come from: one generator for all rows, or one for each. None stands for
            torch's own; rows that use it are drawn together.

    Returns:
        (B,) tokens. A row is drawn as `generate` draws it with these options and this generator.
    """
    if params.is_greedy:
        return most_likely(scores)
    drawn = draw(truncate(scores, params).softmax(-1), 1, generators)[:, 0]
    if not isinstance(params.temperature, Tensor):
        return drawn
    return torch.where(params.temperature[:, 0] == 0, most_likely(scores), drawn)


def truncate(scores: Tensor, params: SamplingParams) -> Tensor:
    """Scores (B, V) over the temperature, minus infinity for tokens that top-k, top-p or min-p rule out, in this order.

    Parameters that rule nothing out in any row cost nothing if they are numbers. A row's scores are those that the
    processors of its options give it; parameters in float64 are rounded as numbers are.
    """
    temperature, top_k, top_p, min_p = params.temperature, params.top_k, params.top_p, params.min_p
    if isinstance(temperature, Tensor):
        temperature = temperature.masked_fill(temperature == 0, 1).to(scores.dtype)
    if isinstance(temperature, Tensor) or temperature != 1:
        scores = scores / temperature
    if isinstance(top_k, Tensor) or top_k:
        scores = scores.masked_fill(outside_top_k(scores, top_k), NEG_INF)
    if isinstance(top_p, Tensor) or top_p < 1:
        scores = scores.masked_fill(outside_top_p(scores, top_p), NEG_INF)
    if isinstance(min_p, Tensor):
        min_p = min_p.to(scores.dtype)
    if isinstance(min_p, Tensor) or min_p > 0:
        scores = scores.masked_fill(below_min_p(scores, min_p), NEG_INF)
    return scores


def choose(scores: Tensor, do_sample: bool, generators: Generators = None) -> Tensor:
    """The most likely token of each row of scores (B, V), or one drawn from their softmax: (B,)."""
    return draw(scores.softmax(-1), 1, generators)[:, 0] if do_sample else most_likely(scores)


def most_likely(scores: Tensor) -> Tensor:
    """The first largest of each row of scores (B, V): (B,). On a CPU numpy finds it in a tenth of torch's time."""
    if type(scores) is Tensor and scores.is_cpu and scores.dtype is torch.float32:
        return torch.from_numpy(scores.detach().numpy().argmax(-1))
    return scores.argmax(-1)


def draw(probabilities: Tensor, number: int, generators: Generators) -> Tensor:
    """Draw tokens (B, number) without replacement from probabilities (B, V); see `sample` for the generators."""
    if generators is None or isinstance(generators, torch.Generator):
        return torch.multinomial(probabilities, number, generator=generators)
    tokens = probabilities.new_empty(len(probabilities), number, dtype=torch.long)
    shared = [row for row, own in enumerate(generators) if own is None]
    if shared:
        tokens[shared] = torch.multinomial(probabilities[shared], number)
    for own, row, drawn in zip(generators, probabilities, tokens, strict=True):
        if own is not None:
            torch.multinomial(row, number, generator=own, out=drawn)
    return tokens
