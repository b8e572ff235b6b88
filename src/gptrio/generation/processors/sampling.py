"""Processors that shape the distribution to sample from: temperature, the truncations, normalisation."""

from __future__ import annotations

from typing import Any

import torch

from gptrio.config.fields import check_number
from gptrio.generation.processors.base import NEG_INF, LogitsProcessor

_HEAD = 512  # likeliest tokens that top-p looks at before it sorts a large vocabulary


def outside_top_k(scores: torch.Tensor, top_k: int | torch.Tensor) -> torch.Tensor:
    """Tokens (B, V) with lower scores (B, V) than the k-th; k may be (B, 1), where 0 keeps all tokens of a row."""
    if not isinstance(top_k, torch.Tensor):
        return scores < scores.topk(min(top_k, scores.shape[-1])).values[:, -1:]
    most = min(max(int(top_k.max()), 1), scores.shape[-1])
    last = scores.topk(most).values.gather(1, (top_k - 1).clamp(0, most - 1))
    return (scores < last) & (top_k > 0)


def outside_top_p(scores: torch.Tensor, top_p: float | torch.Tensor, keep: int = 1) -> torch.Tensor:
    """Tokens (B, V) that follow the fewest likeliest ones whose probabilities reach p, save the `keep` likeliest.

    Args:
        scores: (B, V).
        top_p: p, or one for each row (B, 1), where 1 keeps all tokens of the row.
        keep: number of likeliest tokens to keep at any probability.
    """
    rest = 1 - top_p
    if isinstance(top_p, torch.Tensor) and isinstance(rest, torch.Tensor):
        top_p, rest = top_p.to(scores.dtype), rest.to(scores.dtype)
    tail = _tail_by_head(scores, top_p, keep) if _sorts_slowly(scores) else None
    if tail is None:
        ascending, order = scores.sort(dim=-1)
        in_tail = ascending.softmax(-1).cumsum(-1) <= rest
        in_tail[:, -keep:] = False
        tail = in_tail.scatter(1, order, in_tail)
    return tail & (top_p < 1) if isinstance(top_p, torch.Tensor) else tail


def below_min_p(scores: torch.Tensor, min_p: float | torch.Tensor, keep: int = 1) -> torch.Tensor:
    """Tokens (B, V) less than p times as likely as the likeliest, save the `keep` likeliest; p may be (B, 1)."""
    probabilities = scores.softmax(-1)
    unlikely = probabilities < min_p * probabilities.amax(-1, keepdim=True)
    if keep > 1:  # the likeliest one passes anyway
        unlikely = unlikely.scatter(1, scores.topk(min(keep, scores.shape[-1])).indices, False)
    return unlikely


def _sorts_slowly(scores: torch.Tensor) -> bool:
    """Whether sorting scores (B, V) takes longer than looking at their head, and precision allows the latter."""
    return scores.device.type == "cpu" and scores.shape[-1] > 16 * _HEAD and scores.dtype is torch.float32


def _tail_by_head(scores: torch.Tensor, top_p: float | torch.Tensor, keep: int) -> torch.Tensor | None:
    """Find the tail (B, V) by sorting the likeliest tokens only; None if they do not reach p in every row."""
    head = scores.topk(max(_HEAD, keep))
    reached = (head.values - scores.logsumexp(-1, keepdim=True)).exp().cumsum(-1)
    if not bool((reached[:, -1:] >= top_p).all()):
        return None
    in_tail = torch.ones_like(head.indices, dtype=torch.bool)
    in_tail[:, 1:] = reached[:, :-1] >= top_p
    in_tail[:, :keep] = False
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, head.indices, in_tail)


class TemperatureLogitsWarper(LogitsProcessor):
    """Divide scores by a temperature: below 1 the likely tokens gain, above 1 the unlikely ones.

    Args:
        temperature: above 0.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = check_number("temperature", temperature, float, gt=0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) over the temperature."""
        return scores / self.temperature


class _Truncation(LogitsProcessor):
    """A processor that removes unlikely tokens, but never the `min_tokens_to_keep` likeliest."""

    def __init__(self, filter_value: float, min_tokens_to_keep: int) -> None:
        self.filter_value = filter_value
        self.min_tokens_to_keep = check_number("min_tokens_to_keep", min_tokens_to_keep, int, ge=1)

    def _remove(self, scores: torch.Tensor, unlikely: torch.Tensor) -> torch.Tensor:
        """Fill the `unlikely` (B, V) tokens, save those that tie with or beat the last token to keep."""
        keep = min(self.min_tokens_to_keep, scores.shape[-1])
        last = scores.amax(-1, keepdim=True) if keep == 1 else scores.topk(keep).values[:, -1:]
        return scores.masked_fill(unlikely & (scores < last), self.filter_value)


class TopKLogitsWarper(_Truncation):
    """Keep the k likeliest tokens and those that tie with the last of them.

    Args:
        top_k: how many, at least 1.
        filter_value: score of the removed tokens.
        min_tokens_to_keep: raises `top_k` to at least this.
    """

    def __init__(self, top_k: int, filter_value: float = NEG_INF, min_tokens_to_keep: int = 1) -> None:
        super().__init__(filter_value, min_tokens_to_keep)
        self.top_k = max(check_number("top_k", top_k, int, ge=1), self.min_tokens_to_keep)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) with all but the best k filled."""
        return scores.masked_fill(outside_top_k(scores, self.top_k), self.filter_value)


class TopPLogitsWarper(_Truncation):
    """Keep the fewest likeliest tokens whose probabilities reach `top_p`.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", arXiv:1904.09751.

    Args:
        top_p: from 0 to 1.
        filter_value: score of the removed tokens.
        min_tokens_to_keep: number of likeliest tokens that are never removed.
    """

    def __init__(self, top_p: float, filter_value: float = NEG_INF, min_tokens_to_keep: int = 1) -> None:
        super().__init__(filter_value, min_tokens_to_keep)
        self.top_p = check_number("top_p", top_p, float, ge=0, le=1)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) with the tail filled."""
        return scores.masked_fill(outside_top_p(scores, self.top_p, self.min_tokens_to_keep), self.filter_value)


class MinPLogitsWarper(_Truncation):
    """Keep the tokens that are at least `min_p` times as likely as the likeliest.

    Source: Nguyen et al., "Turning Up the Heat: Min-p Sampling", arXiv:2407.01082.

    Args:
        min_p: from 0 to 1.
        filter_value: score of the removed tokens.
        min_tokens_to_keep: number of likeliest tokens that are never removed.
    """

    def __init__(self, min_p: float, filter_value: float = NEG_INF, min_tokens_to_keep: int = 1) -> None:
        super().__init__(filter_value, min_tokens_to_keep)
        self.min_p = check_number("min_p", min_p, float, ge=0, le=1)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) with the unlikely tokens filled."""
        return scores.masked_fill(below_min_p(scores, self.min_p, self.min_tokens_to_keep), self.filter_value)


class TypicalLogitsWarper(_Truncation):
    """Keep the tokens whose surprise is nearest to the entropy, until their probabilities reach `mass`.

    Source: Meister et al., "Locally Typical Sampling", arXiv:2202.00666.

    Args:
        mass: between 0 and 1.
        filter_value: score of the removed tokens.
        min_tokens_to_keep: this many of the most typical tokens are kept.
    """

    def __init__(self, mass: float = 0.9, filter_value: float = NEG_INF, min_tokens_to_keep: int = 1) -> None:
        super().__init__(filter_value, min_tokens_to_keep)
        self.mass = check_number("typical_p", mass, float, gt=0, lt=1)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) with the untypical tokens filled."""
        log_p = scores.log_softmax(-1)
        entropy = -(log_p * log_p.exp()).nansum(-1, keepdim=True)
        distance, order = (-log_p - entropy).abs().sort(dim=-1)
        reached = scores.gather(-1, order).softmax(-1).cumsum(-1)
        last = (reached < self.mass).sum(-1, keepdim=True).clamp_(max=scores.shape[-1] - 1)
        untypical = distance > distance.gather(1, last)
        untypical[:, : self.min_tokens_to_keep] = False
        return scores.masked_fill(untypical.scatter(1, order, untypical), self.filter_value)


class EpsilonLogitsWarper(_Truncation):
    """Keep the tokens with a probability of at least `epsilon`.

    Source: Hewitt et al., "Truncation Sampling as Language Model Desmoothing", arXiv:2210.15191.

    Args:
        epsilon: between 0 and 1.
        filter_value: score of the removed tokens.
        min_tokens_to_keep: number of likeliest tokens that are never removed.
    """

    def __init__(self, epsilon: float, filter_value: float = NEG_INF, min_tokens_to_keep: int = 1) -> None:
        super().__init__(filter_value, min_tokens_to_keep)
        self.epsilon = check_number("epsilon_cutoff", epsilon, float, gt=0, lt=1)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) with the unlikely tokens filled."""
        return self._remove(scores, scores.softmax(-1) < self.epsilon)


class EtaLogitsWarper(_Truncation):
    """Keep the tokens with a probability of at least min(epsilon, sqrt(epsilon) * exp(-entropy)).

    Source: Hewitt et al., "Truncation Sampling as Language Model Desmoothing", arXiv:2210.15191.

    Args:
        epsilon: between 0 and 1.
        filter_value: score of the removed tokens.
        min_tokens_to_keep: number of likeliest tokens that are never removed.
        device: accepted for compatibility; the computation runs on the device of the scores.
    """

    def __init__(
        self, epsilon: float, filter_value: float = NEG_INF, min_tokens_to_keep: int = 1, device: Any = "cpu"
    ) -> None:
        super().__init__(filter_value, min_tokens_to_keep)
        value = check_number("eta_cutoff", epsilon, float, gt=0, lt=1)
        self.epsilon = torch.tensor(value, dtype=torch.float32, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) with the unlikely tokens filled."""
        self.epsilon = self.epsilon.to(scores.device)
        probabilities, log_p = scores.softmax(-1), scores.log_softmax(-1)
        entropy = -(probabilities * log_p.clamp(min=torch.finfo(scores.dtype).min)).sum(-1, keepdim=True)
        eta = torch.min(self.epsilon, self.epsilon.sqrt() * torch.exp(-entropy))
        return self._remove(scores, probabilities < eta)


class InfNanRemoveLogitsProcessor(LogitsProcessor):
    """Replace NaN by 0 and the infinities by the largest and smallest numbers of the type."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return finite scores (B, V)."""
        return scores.nan_to_num()


class LogitNormalization(LogitsProcessor):
    """Turn scores into log-probabilities."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) whose exponentials sum to 1."""
        return scores.log_softmax(-1)
