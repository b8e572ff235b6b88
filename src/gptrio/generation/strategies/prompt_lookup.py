"""Draft tokens without a model: what followed the last n-gram where it occurred before."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gptrio.config.fields import check_number
from gptrio.generation.processors.base import TokenIds


def find_continuation(input_ids: torch.Tensor, length: int, longest_ngram: int) -> torch.Tensor:
    """Return up to `length` tokens that followed the first earlier occurrence of the longest n-gram that ends the row.

    Args:
        input_ids: (T,) the tokens so far.
        length: most tokens to return.
        longest_ngram: longest n-gram to look for; shorter ones follow down to a single token.

    Returns:
        (n,) tokens, none if no n-gram occurs twice.
    """
    for size in range(min(longest_ngram, input_ids.shape[0] - 1), 0, -1):
        earlier = input_ids[:-1].unfold(0, size, 1)  # (N, size)
        found = (earlier == input_ids[-size:]).all(-1).nonzero()
        if len(found):
            start = int(found[0]) + size
            return input_ids[start : start + length]
    return input_ids[:0]


class PromptLookupCandidateGenerator:
    """Draft tokens for assisted generation by looking n-grams up in the row itself.

    Source: Saxena, "Prompt Lookup Decoding" (2023).

    Args:
        eos_token_id: token or tokens that end a row; a draft stops before them.
        num_output_tokens: most tokens to draft.
        max_matching_ngram_size: longest n-gram to look up (2 by default).
        max_length: most tokens of the row with its draft.
    """

    def __init__(
        self,
        eos_token_id: int | Sequence[int] | torch.Tensor | None = None,
        num_output_tokens: int = 10,
        max_matching_ngram_size: int | None = None,
        max_length: int = 20,
    ) -> None:
        self.num_output_tokens = check_number("num_output_tokens", num_output_tokens, int, ge=1)
        size = 2 if max_matching_ngram_size is None else max_matching_ngram_size
        self.max_matching_ngram_size = check_number("max_matching_ngram_size", size, int, ge=1)
        self.max_length = max_length
        self._ends = frozenset(() if eos_token_id is None else TokenIds("eos_token_id", eos_token_id).ids)

    def get_candidates(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return ids (1, T) with drafted tokens appended, (1, T + n), and no scores for them."""
        room = self.max_length - input_ids.shape[1] - 1  # the model itself adds a token to every draft
        if room <= 0:
            return input_ids, None
        draft = find_continuation(input_ids[0], min(self.num_output_tokens, room), self.max_matching_ngram_size)
        tokens = draft.tolist()
        kept = next((index for index, token in enumerate(tokens) if token in self._ends), len(tokens))
        return torch.cat([input_ids, draft[None, :kept]], dim=1), None

    def update_candidate_strategy(self, input_ids: torch.Tensor, scores: torch.Tensor, num_matches: int) -> None:
        """Take note of how many drafted tokens were right; lookup does not adapt."""
