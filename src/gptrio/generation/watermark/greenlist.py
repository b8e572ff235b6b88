"""The green-list watermark: raises the scores of a part of the vocabulary that depends on the last tokens."""

from __future__ import annotations

from functools import lru_cache

import torch

from gptrio.config.fields import check_number
from gptrio.errors import OptionError, warn
from gptrio.generation.processors.base import LogitsProcessor

_TABLE_SIZE = 1_000_003
_CANDIDATES = 40  # "selfhash" tests this many of the best tokens


class WatermarkLogitsProcessor(LogitsProcessor):
    """Raise the scores of pseudo-random "green" tokens, so that a detector can count them.

    Source: Kirchenbauer et al., "On the Reliability of Watermarks for Large Language Models", arXiv:2306.04634,
    algorithms 2 ("lefthash") and 3 ("selfhash").

    Args:
        vocab_size: V.
        device: device on which random numbers are drawn; they differ between kinds of device.
        greenlist_ratio: part of the vocabulary that is green, between 0 and 1.
        bias: added to the scores of green tokens.
        hashing_key: secret of the seeds.
        seeding_scheme: "lefthash" seeds from the last token, "selfhash" also from the candidate.
        context_width: number of last tokens that "selfhash" hashes.
    """

    def __init__(
        self,
        vocab_size: int,
        device: str | torch.device,
        greenlist_ratio: float = 0.25,
        bias: float = 2.0,
        hashing_key: int = 15485863,
        seeding_scheme: str = "lefthash",
        context_width: int = 1,
    ) -> None:
        if seeding_scheme not in ("lefthash", "selfhash"):
            raise OptionError(f"seeding_scheme={seeding_scheme!r} is not known; expected 'lefthash' or 'selfhash'")
        self.vocab_size = vocab_size
        self.greenlist_size = int(vocab_size * check_number("greenlist_ratio", greenlist_ratio, float, gt=0, lt=1))
        self.bias = bias
        self.hash_key = hashing_key
        self.seeding_scheme = seeding_scheme
        self.context_width = check_number("context_width", context_width, int, ge=1)
        self.rng = torch.Generator(device=device)
        self.rng.manual_seed(hashing_key)
        self.fixed_table = torch.randperm(_TABLE_SIZE, generator=self.rng, device=device)
        self.table_size = _TABLE_SIZE
        self._green_of_seed = lru_cache(maxsize=128)(self._draw)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) with those of green tokens raised."""
        if input_ids.shape[-1] < self.context_width:
            warn(f"{input_ids.shape[-1]} tokens are fewer than context_width={self.context_width}; not watermarked yet")
            return scores
        raised = scores.clone()
        for row, ids in enumerate(input_ids):
            green = self._green_candidates(ids, scores[row]) if self._selfhash else self.greenlist(ids)
            raised[row, green] += self.bias
        return raised

    @property
    def _selfhash(self) -> bool:
        return self.seeding_scheme == "selfhash"

    def greenlist(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the green tokens (G,) after ids (T,); for "selfhash" these end with the candidate itself."""
        last = ids[-self.context_width :]
        if self._selfhash:
            hashed = self.fixed_table[last % self.table_size] + 1  # the last one is the candidate's
            seed = int((self.hash_key * hashed * hashed[-1]).min())
        else:
            seed = self.hash_key * int(last[-1])
        return self._green_of_seed(seed % (2**64 - 1), self.vocab_size, self.greenlist_size)

    def _draw(self, seed: int, vocab_size: int, size: int) -> torch.Tensor:
        self.rng.manual_seed(seed)
        order = torch.randperm(vocab_size, generator=self.rng, device=self.rng.device)
        return order[:size]

    def _green_candidates(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return those of the best tokens by scores (V,) that would be green after ids (T,)."""
        best = scores.topk(min(_CANDIDATES, scores.shape[0])).indices
        green = [bool((self.greenlist(torch.cat([ids, token[None]])) == token).any()) for token in best]
        return best[torch.tensor(green, device=best.device)]
