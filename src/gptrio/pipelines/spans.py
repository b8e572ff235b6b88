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


def in_text(offsets: Sequence[Span], word_ids: Sequence[int | None], words: Sequence[Span]) -> list[Span]:
    """Places of tokens in a text, from their places in its words.

    Args:
        offsets: place of each token in its word.
        word_ids: number of each token's word; None for special tokens.
        words: place of each word.
    """
    begins = [0 if word is None else words[word][0] for word in word_ids]
    return [(start + begin, end + begin) for (start, end), begin in zip(offsets, begins, strict=True)]


def is_continuation(text: str, token: str, span: Span, tokenizer: Any) -> bool:
    """Whether a token continues the word of the token before it.

    The tokenizers of these models do not mark that: a token begins a word if a space is beside its start.
    """
    start, end = span
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if getattr(getattr(backend, "model", None), "continuing_subword_prefix", None):
        return len(token) != end - start  # by a prefix that the token has and the text has not
    return start > 0 and " " not in text[start - 1 : start + 1]


def answer_span(encoding: Any, first: int, last: int, sequence: int, align_to_words: bool) -> Span:
    """Place of an answer in its text.

    Args:
        encoding: of the `tokenizers` library.
        first, last: the answer's tokens.
        sequence: 0 or 1, the text of the pair that they are in.
        align_to_words: extend the answer to whole words, if both tokens are in words.
    """
    words = (encoding.token_to_word(first), encoding.token_to_word(last)) if align_to_words else (None, None)
    if None not in words:
        places = [encoding.word_to_chars(word, sequence) for word in words]
        if None not in places:
            return places[0][0], places[1][1]
    return encoding.offsets[first][0], encoding.offsets[last][1]
