"""The best sequences of one prompt that have ended, a few of them."""

from __future__ import annotations

from dataclasses import dataclass

from gptrio.generation.options.config import GenerationConfig


@dataclass
class Hypothesis:
    """A sequence that has ended.

    Attributes:
        score: sum of log-probabilities over a power of the length.
        ids: the tokens, the end left out.
        origins: row of the scores that each new token was taken from, the end included.
    """

    score: float
    ids: list[int]
    origins: list[int]


class Hypotheses:
    """Up to `size` sequences, of which better ones displace the worst.

    Args:
        size: number of places.
        config: gives length penalty and early stopping.
        prompt: length of the prompt.
    """

    def __init__(self, size: int, config: GenerationConfig, prompt: int) -> None:
        self.size = size
        self.kept: list[Hypothesis] = []
        self._early_stopping = config.early_stopping
        self._exponent = 1.0 if config.length_penalty is None else config.length_penalty
        self._longest = None if config.max_length is None else config.max_length - prompt

    def add(self, ids: list[int], total: float, origins: list[int], length: int) -> None:
        """Keep a sequence if there is room or a worse one.

        Args:
            ids: its tokens.
            total: sum of log-probabilities.
            origins: see `Hypothesis`.
            length: number of new tokens that the score is divided by.
        """
        new = Hypothesis(total / length**self._exponent, ids, origins)
        if len(self.kept) < self.size:
            self.kept.append(new)
        elif new.score > self.worst:
            place = min(range(len(self.kept)), key=lambda i: self.kept[i].score)
            del self.kept[place]
            self.kept.append(new)

    @property
    def worst(self) -> float:
        """Score of the worst sequence."""
        return min(item.score for item in self.kept)

    def is_done(self, best: float, length: int) -> bool:
        """Whether no running beam can displace a sequence any more.

        Args:
            best: best sum of log-probabilities of a running beam.
            length: its new tokens.
        """
        if len(self.kept) < self.size:
            return False
        if self._early_stopping is True:
            return True
        if self._early_stopping == "never" and self._exponent > 0 and self._longest is not None:
            length = self._longest
        reachable: float = best / length**self._exponent
        return self.worst >= reachable

    def best(self, number: int) -> list[Hypothesis]:
        """The best sequences, best first; of equal ones the later."""
        return sorted(self.kept, key=lambda item: item.score)[::-1][:number]
