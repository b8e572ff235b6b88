"""Processors that look for sequences of tokens: repeated n-grams, biased sequences, bad words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gptrio.config.fields import check_number, has_type
from gptrio.errors import OptionError, TokenIdError
from gptrio.generation.processors.base import NEG_INF, LogitsProcessor, TokenIds, repeat_prompts


def _forbid_completions(
    scores: torch.Tensor, ngrams: torch.Tensor, input_ids: torch.Tensor, ngram_size: int
) -> torch.Tensor:
    """Forbid the last tokens of those n-grams (B, N, n) whose first n - 1 tokens end the rows of ids (B, T)."""
    ending = input_ids[:, input_ids.shape[1] - (ngram_size - 1) :]
    completed = (ngrams[..., :-1] == ending[:, None]).all(-1)  # (B, N)
    ceiling = torch.where(completed, NEG_INF, -NEG_INF).to(scores.dtype)
    return scores.scatter_reduce(1, ngrams[..., -1], ceiling, "amin")


class NoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Forbid tokens that would complete an n-gram for the second time in a row of ids, prompt included.

    Args:
        ngram_size: n, at least 1.
    """

    def __init__(self, ngram_size: int) -> None:
        self.ngram_size = check_number("no_repeat_ngram_size", ngram_size, int, ge=1)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) without the repeating tokens."""
        if input_ids.shape[1] < self.ngram_size:
            return scores
        return _forbid_completions(scores, input_ids.unfold(1, self.ngram_size, 1), input_ids, self.ngram_size)


class EncoderNoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Forbid tokens that would complete an n-gram of the prompt.

    Args:
        encoder_ngram_size: n, at least 1.
        encoder_input_ids: (E, T) the prompts; B must be a multiple of E.
    """

    def __init__(self, encoder_ngram_size: int, encoder_input_ids: torch.Tensor) -> None:
        self.ngram_size = check_number("encoder_no_repeat_ngram_size", encoder_ngram_size, int, ge=1)
        self.encoder_input_ids = encoder_input_ids

    @property
    def batch_size(self) -> int:
        """E: number of prompts."""
        return self.encoder_input_ids.shape[0]

    @property
    def generated_ngrams(self) -> list[dict[tuple[int, ...], list[int]]]:
        """For each prompt, which tokens follow the first n - 1 tokens of its n-grams."""
        found: list[dict[tuple[int, ...], list[int]]] = []
        for ids in self.encoder_input_ids.tolist():
            found.append({})
            for end in range(self.ngram_size, len(ids) + 1):
                *first, last = ids[end - self.ngram_size : end]
                found[-1].setdefault(tuple(first), []).append(last)
        return found

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) without the repeating tokens."""
        if min(self.encoder_input_ids.shape[-1], input_ids.shape[1] + 1) < self.ngram_size:
            return scores
        prompts = repeat_prompts(self.encoder_input_ids, scores.shape[0], "encoder_input_ids")
        return _forbid_completions(scores, prompts.unfold(1, self.ngram_size, 1), input_ids, self.ngram_size)


class _BiasedSequences(LogitsProcessor):
    """Add a bias to the tokens that would complete given sequences {(token ids): bias}."""

    def __init__(self, sequence_bias: dict[tuple[int, ...], float]) -> None:
        self.sequence_bias = sequence_bias
        self.length_1_bias: torch.Tensor | None = None  # (V,) the biases that always count
        self.prepared_bias_variables = False
        self._longer: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) with the biases of the completed sequences added."""
        always = self.length_1_bias if self.prepared_bias_variables else None
        if always is None or (always.shape, always.device) != (scores.shape[-1:], scores.device):
            always = self._prepare(scores)
        bias = always.to(scores.dtype)
        for prefixes, last, weight in self._longer:  # grouped by length: (N, n - 1), (N,), (N,)
            length = prefixes.shape[1]
            if length >= input_ids.shape[1]:
                continue
            matches = (input_ids[:, None, -length:] == prefixes).all(-1)  # (B, N)
            bias = bias.expand(scores.shape).index_add(1, last, torch.where(matches, weight, 0.0).to(bias.dtype))
        return scores + bias

    def _prepare(self, scores: torch.Tensor) -> torch.Tensor:
        """Make and return the biases that always count (V,), and make the tensors of longer sequences."""
        outside = [token for ids in self.sequence_bias for token in ids if token >= scores.shape[-1]]
        if outside:
            raise TokenIdError(f"tokens {outside} of the biased sequences lie outside the {scores.shape[-1]} scores")
        always = torch.zeros(scores.shape[-1], dtype=torch.float32, device=scores.device)
        by_length: dict[int, list[tuple[int, ...]]] = {}
        for ids, bias in self.sequence_bias.items():
            if len(ids) == 1:
                always[ids[0]] = bias
            else:
                by_length.setdefault(len(ids), []).append(ids)
        self._longer = []
        for sequences in by_length.values():
            ids_together = torch.tensor(sequences, device=scores.device)
            biases = [self.sequence_bias[ids] for ids in sequences]
            weight = torch.tensor(biases, dtype=torch.float32, device=scores.device)
            self._longer.append((ids_together[:, :-1], ids_together[:, -1], weight))
        self.length_1_bias, self.prepared_bias_variables = always, True
        return always


class SequenceBiasLogitsProcessor(_BiasedSequences):
    """Add a bias to the tokens that would complete given sequences; one of a single token always counts.

    Args:
        sequence_bias: {(token ids): bias} or [[[token ids], bias], ...].

    Raises:
        OptionError: it is empty or of another form.
        TokenIdError: when called, if a token lies outside the vocabulary.
    """

    def __init__(self, sequence_bias: Mapping[tuple[int, ...], float] | Sequence[Sequence[Any]]) -> None:
        pairs = list(sequence_bias.items() if isinstance(sequence_bias, Mapping) else sequence_bias)
        if any(not has_type(pair, list[Any]) or len(pair) != 2 or not has_type(pair[1], float) for pair in pairs):
            raise OptionError(f"sequence_bias={sequence_bias!r} must be {{(ids): bias}} or [[[ids], bias], ...]")
        sequences = _checked([ids for ids, _ in pairs], "sequence_bias")
        super().__init__(dict(zip(sequences, (float(bias) for _, bias in pairs), strict=True)))


class NoBadWordsLogitsProcessor(_BiasedSequences):
    """Forbid sequences of tokens: their last token can never complete them.

    Args:
        bad_words_ids: the sequences, as lists of token ids.
        eos_token_id: token or tokens that end a row; never forbidden on their own.

    Raises:
        OptionError: `bad_words_ids` is empty or of another form.
        TokenIdError: when called, if a token lies outside the vocabulary.
    """

    def __init__(
        self, bad_words_ids: Sequence[Sequence[int]], eos_token_id: int | Sequence[int] | torch.Tensor | None = None
    ) -> None:
        ends = [] if eos_token_id is None else TokenIds("eos_token_id", eos_token_id).ids
        words = _checked(bad_words_ids, "bad_words_ids")
        self.bad_word_ids = bad_words_ids
        super().__init__({ids: NEG_INF for ids in words if len(ids) > 1 or ids[0] not in ends})


def _checked(sequences: Sequence[Sequence[int]], name: str) -> list[tuple[int, ...]]:
    """Return sequences of token ids as tuples, or raise OptionError."""
    usable = has_type(sequences, list[list[int]]) and sequences
    if not usable or any(len(ids) == 0 or min(ids) < 0 for ids in sequences):
        raise OptionError(
            f"{name} holds the sequences {sequences!r}; expected lists of token ids, one at least, none empty"
        )
    return [tuple(ids) for ids in sequences]
