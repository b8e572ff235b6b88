"""Find strings in the text of tokens, across the borders between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from gptrio.errors import OptionError


class Tokenizer(Protocol):
    """What is needed of a tokenizer here."""

    def decode(self, token_ids: list[int], **kwargs: Any) -> str:
        """Return the text of token ids."""


class StopStringMatcher:
    """Tells whether the last of some tokens completes one of the strings.

    Args:
        tokenizer: decodes the tokens; one token's text must not depend on far ones.
        stop_strings: what to look for.

    Raises:
        OptionError: there is no tokenizer, no string, or an empty one.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop_strings: Sequence[str]) -> None:
        if tokenizer is None:
            raise OptionError(f"stop_strings={list(stop_strings)} need the model's tokenizer; pass tokenizer=...")
        if not stop_strings or any(not isinstance(text, str) or not text for text in stop_strings):
            raise OptionError(f"stop_strings={list(stop_strings)} must be strings, none of them empty")
        self._tokenizer = tokenizer
        self._stop_strings = stop_strings
        longest = max(len(text.encode()) for text in stop_strings)
        self.window = longest + 1  # a token has a byte at least; one more, since some decoders strip the first

    def completed(self, token_ids: list[int]) -> bool:
        """Whether a stop string ends in the last token's part of the text."""
        before, text = self._decode(token_ids[:-1]), self._decode(token_ids)
        if not text.startswith(before):
            before = before.rstrip("\ufffd")  # the last token completes a character
        settled = len(before)
        return any(text.find(stop, max(0, settled - len(stop) + 1)) >= 0 for stop in self._stop_strings)

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
