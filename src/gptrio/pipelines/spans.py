"""Where words and tokens are in a text, in characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Span = tuple[int, int]  # characters from the first to before the second


def join_words(words: Sequence[str], delimiter: str) -> tuple[str, list[Span]]:
    """Join words to a text; return it and the place of each word."""
    spans, start = [], 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + len(delimiter)
    return delimiter.join(words), spans


def is_continuation(text: str, token: str, span: Span, tokenizer: Any) -> bool:
    """Whether a token continues the word of the token before it.

    The tokenizers of these models do not mark that: a token begins a word if a space is beside its start.
    """
    start, end = span
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if getattr(getattr(backend, "model", None), "continuing_subword_prefix", None):
        return len(token) != end - start  # by a prefix that the token has and the text has not
    return start > 0 and " " not in text[start - 1 : start + 1]
