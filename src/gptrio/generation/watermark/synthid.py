"""The SynthID watermark: a tournament over pseudo-random bits of each n-gram shifts the distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gptrio.config.fields import check_number
from gptrio.errors import InputError
from gptrio.generation.processors.base import LogitsProcessor

_MULTIPLIER, _INCREMENT = 6364136223846793005, 1  # a linear congruential step; int64 wraps around


def _hash(start: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """Fold the last axis of `data` (..., L) into hashes `start` (...), broadcast against each other."""
    for part in data.unbind(-1):
        start = (start + part) * _MULTIPLIER + _INCREMENT
    return start


class SynthIDTextWatermarkState:
    """State of the SynthID watermark for each row.

    Args:
        batch_size: B.
        ngram_len: length of the hashed n-grams.
        context_history_size: number of stored contexts.
        device: device of the tensors.

    Attributes:
        context: (B, ngram_len - 1) newest tokens.
        context_history: (B, context_history_size) hashes of earlier contexts.
        num_calls: steps so far.
    """

    def __init__(self, batch_size: int, ngram_len: int, context_history_size: int, device: str | torch.device) -> None:
        self.context = torch.zeros(batch_size, ngram_len - 1, dtype=torch.long, device=device)
        self.context_history = torch.zeros(batch_size, context_history_size, dtype=torch.long, device=device)
        self.num_calls = 0


class SynthIDTextWatermarkLogitsProcessor(LogitsProcessor):
    """Watermark by tournament sampling; it stores the last tokens of each row, so use one for each call of `generate`.

    Source: Dathathri et al., "Scalable watermarking for identifying large language model outputs", Nature 634 (2024).

    Args:
        ngram_len: length of the hashed n-grams, the new token included; at least 2.
        keys: secret keys, one for each of the D layers of the tournament.
        sampling_table_size: entries of the table of random bits.
        sampling_table_seed: its seed.
        context_history_size: number of stored contexts; a repeated one is not watermarked twice.
        device: device of the computation.
        skip_first_ngram_calls: do not watermark the first `ngram_len - 1` steps.
        debug_mode: watermark a uniform distribution instead of the model's.
    """

    def __init__(
        self,
        ngram_len: int,
        keys: Sequence[int],
        sampling_table_size: int,
        sampling_table_seed: int,
        context_history_size: int,
        device: str | torch.device,
        skip_first_ngram_calls: bool = False,
        debug_mode: bool = False,
    ) -> None:
        self.ngram_len = check_number("ngram_len", ngram_len, int, ge=2)
        self.keys = torch.tensor(keys, device=device)
        generator = torch.Generator(device=device).manual_seed(sampling_table_seed)
        self.sampling_table = torch.randint(0, 2, (sampling_table_size,), generator=generator, device=device)
        self.context_history_size = check_number("context_history_size", context_history_size, int, ge=1)
        self.device = device
        self.skip_first_ngram_calls = skip_first_ngram_calls
        self.debug_mode = debug_mode
        self.state: SynthIDTextWatermarkState | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return watermarked log-probabilities (B, V); rows whose context was seen before keep their scores."""
        batch, vocab_size = scores.shape
        if self.debug_mode:
            scores = torch.ones_like(scores)
        state = self._advance(input_ids, batch)
        if self.skip_first_ngram_calls and state.num_calls < self.ngram_len:
            return scores
        context = _hash(torch.ones(batch, dtype=torch.long, device=self.device), state.context)  # (B,)
        seen = (state.context_history == context[:, None]).any(1, keepdim=True)
        state.context_history = torch.cat([context[:, None], state.context_history[:, :-1]], dim=1)
        tokens = torch.arange(vocab_size, device=self.device)
        ngrams = _hash(context[:, None], tokens[None, :, None])  # (B, V)
        return torch.where(seen, scores, self.update_scores(scores, self._bits(ngrams)))

    def _advance(self, input_ids: torch.Tensor, batch: int) -> SynthIDTextWatermarkState:
        """Start with an empty context (B, ngram_len - 1), or shift the newest tokens into it."""
        state = self.state
        if state is None:
            state = SynthIDTextWatermarkState(batch, self.ngram_len, self.context_history_size, self.device)
            self.state = state
        elif state.context.shape[0] != batch:
            raise InputError(
                f"the watermark has state for {len(state.context)} rows and got {batch}; make a new processor"
            )
        else:
            state.context = torch.cat([state.context[:, 1:], input_ids[:, -1:].to(self.device)], dim=1)
        state.num_calls += 1
        return state

    def update_scores(self, scores: torch.Tensor, g_values: torch.Tensor) -> torch.Tensor:
        """Run the tournament: scores (B, V) and bits (B, V, D) to log-probabilities (B, V)."""
        probabilities = scores.softmax(1)
        for bits in g_values.unbind(-1):
            mass = (bits * probabilities).sum(1, keepdim=True)
            probabilities = probabilities * (1 + bits - mass)
        log_p = probabilities.log()
        return torch.where(log_p.isfinite(), log_p, torch.finfo(log_p.dtype).min)

    def _bits(self, ngrams: torch.Tensor) -> torch.Tensor:
        """Return a pseudo-random bit for each n-gram hash (...) and key: (..., D)."""
        keyed = _hash(ngrams[..., None], self.keys[:, None])
        return self.sampling_table[keyed % self.sampling_table.shape[0]]

    def compute_g_values(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the bits (B, T - ngram_len + 1, D) of the n-grams of ids (B, T)."""
        ngrams = _matrix(input_ids).unfold(1, self.ngram_len, 1)  # (B, N, n)
        start = torch.ones(ngrams.shape[:2], dtype=torch.long, device=self.device)
        return self._bits(_hash(start, ngrams))

    def compute_context_repetition_mask(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return (B, T - ngram_len + 1), False where the context of an n-gram is among the stored ones."""
        contexts = _matrix(input_ids)[:, :-1].unfold(1, self.ngram_len - 1, 1)  # (B, N, n - 1)
        start = torch.ones(contexts.shape[:2], dtype=torch.long, device=self.device)
        rows = [self._is_new(hashes) for hashes in _hash(start, contexts).tolist()]
        return torch.tensor(rows, device=self.device)

    def _is_new(self, hashes: list[int]) -> list[bool]:
        last_seen = {0: -1}  # the history starts filled with zeros
        new = []
        for position, value in enumerate(hashes):
            new.append(position - last_seen.get(value, -self.context_history_size - 1) > self.context_history_size)
            last_seen[value] = position
        return new

    def compute_eos_token_mask(self, input_ids: torch.Tensor, eos_token_id: int) -> torch.Tensor:
        """Return (B, T), 0 from the first end on and 1 before it."""
        return ((_matrix(input_ids) == eos_token_id).cumsum(1) == 0).long()

    def expected_mean_g_value(self, vocab_size: int, coinflip_prob: float = 0.5) -> float:
        """Return the mean bit to expect of watermarked text under a uniform distribution over the vocabulary."""
        return coinflip_prob + coinflip_prob * (1 - coinflip_prob) * (1 - 1 / vocab_size)


def _matrix(input_ids: torch.Tensor) -> torch.Tensor:
    if input_ids.dim() != 2:
        raise InputError(f"ids have shape {tuple(input_ids.shape)}; expected (batch, length)")
    return input_ids
