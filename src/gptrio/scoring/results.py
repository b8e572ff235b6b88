"""What `score` returns for a text, and what is read from it: totals, bits per byte, words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from gptrio.errors import InputError


class TopToken(NamedTuple):
    """One of the likeliest tokens of a position.

    Attributes:
        id: in the vocabulary.
        token: as the vocabulary spells it.
        log_prob: natural logarithm of its probability.
    """

    id: int
    token: str
    log_prob: float


class Word(NamedTuple):
    """A word of a text: what stands between white space.

    Attributes:
        text: without the white space around it.
        offsets: (start, end) in characters.
        log_prob: natural logarithm of its probability after what precedes it; None where its first token has none.
    """

    text: str
    offsets: tuple[int, int]
    log_prob: float | None


@dataclass(frozen=True)
class TextScore:
    """How probable a model finds each token of a text. All logarithms are natural ones.

    Attributes:
        text: as given; decoded if ids were given.
        ids: its tokens (T).
        tokens: as the vocabulary spells them.
        offsets: (start, end) of each token in the text, in characters; tokens that share a character both cover it.
        byte_offsets: the same in bytes of UTF-8.
        log_probs: of each token after all before it; None for a first token with nothing before it.
        ranks: 1 for the likeliest token of all, and so on; None likewise.
        top: the likeliest tokens of each position, likeliest first; empty unless they were asked for.
        boundary_log_probs: (T + 1) of white space or the end of text before each token, and after the last; empty
            unless asked for.
    """

    text: str
    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    byte_offsets: list[tuple[int, int]]
    log_probs: list[float | None]
    ranks: list[int | None]
    top: list[list[TopToken]] = field(default_factory=list)
    boundary_log_probs: list[float | None] = field(default_factory=list)

    @property
    def scored(self) -> list[float]:
        """The log-probabilities that there are."""
        return [value for value in self.log_probs if value is not None]

    @property
    def total(self) -> float:
        """Log-probability of the text, without tokens that have none."""
        return math.fsum(self.scored)

    @property
    def mean(self) -> float:
        """Log-probability per token; not a number if no token has one."""
        return self.total / len(self.scored) if self.scored else math.nan

    @property
    def perplexity(self) -> float:
        """exp(-mean)."""
        return math.exp(-self.mean)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tokens that have a log-probability."""
        spans = zip(self.byte_offsets, self.log_probs, strict=True)
        return sum(end - start for (start, end), value in spans if value is not None)

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of UTF-8, which does not depend on the tokenizer."""
        return -self.total / math.log(2) / self.num_bytes if self.num_bytes else math.nan

    def words(self, corrected: bool = False) -> list[Word]:
        """Log-probabilities of words, each the sum of its tokens'.

        Args:
            corrected: count the end of a word, which such tokenizers mark by the space before the next word, to the
                word itself (Pimentel and Meister, "How to Compute the Probability of a Word", 2024): add the
                log-probability that white space or the end of text follows it, and subtract that it stood before it.
                A first word without white space before it has nothing to subtract.

        Raises:
            InputError: `corrected` without `boundaries=True` when the text was scored.
        """
        if corrected and not self.boundary_log_probs:
            raise InputError("words(corrected=True) needs the score of boundaries; call score(..., boundaries=True)")
        return [self._word(first, last, corrected) for first, last in pairwise([*self._word_starts(), len(self.ids)])]

    def _word_starts(self) -> Iterator[int]:
        """Tokens that begin with white space after a word, and the first one."""
        has_word = False
        for i, (start, end) in enumerate(self.offsets):
            piece = self.text[start:end]
            if i == 0 or (has_word and piece[:1].isspace()):
                yield i
                has_word = False
            has_word = has_word or bool(piece.strip())

    def _word(self, first: int, last: int, corrected: bool) -> Word:
        start, end = self.offsets[first][0], self.offsets[last - 1][1]
        piece = self.text[start:end]
        start, end = start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
        parts = self.log_probs[first:last]
        if corrected:
            after, before = self.boundary_log_probs[last], self.boundary_log_probs[first]
            parts.append(after)
            if piece[:1].isspace():
                parts.append(None if before is None else -before)
        known = [part for part in parts if part is not None]
        return Word(piece.strip(), (start, max(start, end)), math.fsum(known) if len(known) == len(parts) else None)
