"""Processors that forbid or force tokens: minimum lengths, first and last tokens, suppressed and allowed tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gptrio.config.fields import check_number
from gptrio.errors import OptionError
from gptrio.generation.processors.base import NEG_INF, LogitsProcessor, TokenIds, TokenIdsAttribute, force

Ids = int | Sequence[int] | torch.Tensor


class MinLengthLogitsProcessor(LogitsProcessor):
    """Forbid end-of-text tokens until a row, prompt included, has `min_length` tokens.

    Args:
        min_length: at least 0.
        eos_token_id: token or tokens that end a row.
        device: device of the ids; the computation runs on the device of the scores.
    """

    eos_token_id = TokenIdsAttribute("eos_token_id")

    def __init__(self, min_length: int, eos_token_id: Ids, device: str | torch.device = "cpu") -> None:
        self.min_length = check_number("min_length", min_length, int, ge=0)
        self._eos_token_id = TokenIds("eos_token_id", eos_token_id, device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) in which short rows cannot end."""
        if input_ids.shape[-1] >= self.min_length:
            return scores
        return scores.index_fill(1, self._eos_token_id.within(scores), NEG_INF)


class MinNewTokensLengthLogitsProcessor(LogitsProcessor):
    """Forbid end-of-text tokens until a row has `min_new_tokens` tokens after the prompt.

    Args:
        prompt_length_to_skip: length of the prompt.
        min_new_tokens: at least 0.
        eos_token_id: token or tokens that end a row.
        device: device of the ids; the computation runs on the device of the scores.
    """

    eos_token_id = TokenIdsAttribute("eos_token_id")

    def __init__(
        self, prompt_length_to_skip: int, min_new_tokens: int, eos_token_id: Ids, device: str | torch.device = "cpu"
    ) -> None:
        self.prompt_length_to_skip = check_number("prompt_length_to_skip", prompt_length_to_skip, int, ge=0)
        self.min_new_tokens = check_number("min_new_tokens", min_new_tokens, int, ge=0)
        self._eos_token_id = TokenIds("eos_token_id", eos_token_id, device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) in which rows with few new tokens cannot end."""
        if input_ids.shape[-1] - self.prompt_length_to_skip >= self.min_new_tokens:
            return scores
        return scores.index_fill(1, self._eos_token_id.within(scores), NEG_INF)


class ForcedBOSTokenLogitsProcessor(LogitsProcessor):
    """Force a token after a single first token.

    Args:
        bos_token_id: the token.
    """

    def __init__(self, bos_token_id: int) -> None:
        self.bos_token_id = TokenIds("forced_bos_token_id", bos_token_id).ids[0]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V), 0 for the token and minus infinity otherwise, when T is 1."""
        if input_ids.shape[-1] != 1:
            return scores
        return force(scores, TokenIds("forced_bos_token_id", self.bos_token_id).within(scores))


class ForcedEOSTokenLogitsProcessor(LogitsProcessor):
    """Force an end-of-text token as the last token that `max_length` allows.

    Args:
        max_length: most tokens of a row, prompt included.
        eos_token_id: token or tokens to force.
        device: device of the ids; the computation runs on the device of the scores.
    """

    eos_token_id = TokenIdsAttribute("forced_eos_token_id")

    def __init__(self, max_length: int, eos_token_id: Ids, device: str | torch.device = "cpu") -> None:
        self.max_length = max_length
        self._eos_token_id = TokenIds("forced_eos_token_id", eos_token_id, device)
        if min(self._eos_token_id.ids) < 0:
            raise OptionError(f"forced_eos_token_id={self._eos_token_id.ids} must hold token ids of at least 0")

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V), at the last position 0 for the forced tokens and minus infinity otherwise."""
        last = input_ids.shape[-1] == self.max_length - 1
        return force(scores, self._eos_token_id.within(scores)) if last else scores


class SuppressTokensLogitsProcessor(LogitsProcessor):
    """Forbid tokens at every position.

    Args:
        suppress_tokens: the tokens.
        device: device of the ids; the computation runs on the device of the scores.
    """

    suppress_tokens = TokenIdsAttribute("suppress_tokens")

    def __init__(self, suppress_tokens: Ids, device: str | torch.device = "cpu") -> None:
        self._suppress_tokens = TokenIds("suppress_tokens", suppress_tokens, device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) without the tokens."""
        return scores.index_fill(1, self._suppress_tokens.within(scores), NEG_INF)


class SuppressTokensAtBeginLogitsProcessor(LogitsProcessor):
    """Forbid tokens as the first new one.

    Args:
        begin_suppress_tokens: the tokens.
        begin_index: length of the rows when the first token is chosen.
        device: device of the ids; the computation runs on the device of the scores.
    """

    begin_suppress_tokens = TokenIdsAttribute("begin_suppress_tokens")

    def __init__(self, begin_suppress_tokens: Ids, begin_index: int, device: str | torch.device = "cpu") -> None:
        self._begin_suppress_tokens = TokenIds("begin_suppress_tokens", begin_suppress_tokens, device)
        self.begin_index = begin_index

    def set_begin_index(self, begin_index: int) -> None:
        """Set the length of the rows when the first token is chosen."""
        self.begin_index = begin_index

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) without the tokens, at the first step."""
        if input_ids.shape[-1] != self.begin_index:
            return scores
        return scores.index_fill(1, self._begin_suppress_tokens.within(scores), NEG_INF)


class PrefixConstrainedLogitsProcessor(LogitsProcessor):
    """Allow only the tokens that a function names for each row.

    Args:
        prefix_allowed_tokens_fn: called with the prompt's index and its row (T,); returns the allowed token ids.
        num_beams: rows for each prompt.

    Raises:
        OptionError: when called, if the function allows no token.
    """

    def __init__(self, prefix_allowed_tokens_fn: Callable[[int, torch.Tensor], list[int]], num_beams: int) -> None:
        self.prefix_allowed_tokens_fn = prefix_allowed_tokens_fn
        self.num_beams = check_number("num_beams", num_beams, int, ge=1)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V), minus infinity for tokens that are not allowed."""
        allowed = torch.full_like(scores, NEG_INF)
        for row, ids in enumerate(input_ids):
            prompt = row // self.num_beams
            tokens = self.prefix_allowed_tokens_fn(prompt, ids)
            if len(tokens) == 0:
                raise OptionError(f"prefix_allowed_tokens_fn allows no token for prompt {prompt}; return at least one")
            allowed[row, tokens] = 0
        return scores + allowed
