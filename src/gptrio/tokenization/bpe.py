"""Byte-level byte-pair encoding in pure Python.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.2, over the merging of
Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (2016).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Any

import regex

from gptrio.errors import TokenizationError

Pair = tuple[str, str]

# contractions, then runs of letters, of digits and of other signs, each with one space before it; then white space
WORD_PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

_CACHE_LIMIT = 1 << 16  # words
_LONGEST_CACHED = 64  # characters; longer "words" rarely recur


@cache
def byte_alphabet() -> dict[int, str]:
    """Return the printable character that stands for each of the 256 bytes in a vocabulary.

    Printable Latin-1 bytes stand for themselves and come first, as in GPT-2's vocabulary; the others take the code
    points from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


bytes_to_unicode = byte_alphabet  # its name in Transformers, which scripts import


def get_pairs(word: Sequence[str]) -> set[tuple[str, str]]:
    """The neighbouring symbols of a word."""
    return set(pairwise(word))


@cache
def _byte_of_char() -> dict[str, int]:
    return {char: byte for byte, char in byte_alphabet().items()}


def to_alphabet(text: str) -> str:
    """Write the UTF-8 bytes of a text in the byte alphabet.

    Raises:
        UnicodeEncodeError: the text holds a lone surrogate; see `surrogate_error`.
    """
    return text.encode("utf-8").decode("latin-1").translate(byte_alphabet())


def from_alphabet(text: str, errors: str) -> str:
    """Turn text in the byte alphabet back into a string; `errors` as in `bytes.decode`.

    Raises:
        TokenizationError: a character does not stand for a byte, or the bytes are not UTF-8, with `errors="strict"`.
    """
    byte_of = _byte_of_char()
    try:
        return bytes([byte_of[char] for char in text]).decode("utf-8", errors=errors)
    except KeyError as error:
        raise TokenizationError(f"{text!r} is not written in the byte alphabet: {error} stands for no byte") from error
    except UnicodeDecodeError as error:
        raise TokenizationError(
            f"the tokens are not valid UTF-8 ({error}); errors='replace' marks the positions instead of raising"
        ) from error


def has_surrogate(text: str) -> bool:
    """Whether a text holds a lone surrogate."""
    return any("\ud800" <= char <= "\udfff" for char in text)


def surrogate_error(text: str) -> TokenizationError:
    """Describe where a text cannot be written as UTF-8."""
    position = next(i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff")
    return TokenizationError(
        f"text holds a lone surrogate {text[position]!r} at character {position}, which is not Unicode text; "
        "repair it, e.g. with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
    )


class ByteLevelBPE:
    """Splits text into words and each word's bytes into the tokens that the merges make of them.

    Args:
        vocab: token (in the byte alphabet) to id.
        merges: pairs of tokens, merged in this order.
    """

    def __init__(self, vocab: dict[str, int], merges: Iterable[Pair]) -> None:
        self.vocab = vocab
        self.ranks: dict[Pair, int] = {pair: rank for rank, pair in enumerate(merges)}
        self._cache: dict[str, list[str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Everything except the cache of words, so that pickles do not depend on earlier calls."""
        return {**vars(self), "_cache": {}}

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text, in the byte alphabet."""
        tokens: list[str] = []
        for word in WORD_PATTERN.findall(text):
            tokens += self._cache.get(word) or self._tokenize_word(word)
        return tokens

    def _tokenize_word(self, word: str) -> list[str]:
        tokens = self.merge([*to_alphabet(word)])
        if len(word) <= _LONGEST_CACHED:
            if len(self._cache) >= _CACHE_LIMIT:
                self._cache.clear()
            self._cache[word] = tokens
        return tokens

    def merge(self, symbols: list[str]) -> list[str]:
        """Apply the merges to a word, best rank first and left to right, in O(n log n)."""
        end, ranks = len(symbols), self.ranks
        symbols.append("")  # sentinel after the last symbol, in no merge
        before, after = [*range(-1, end)], [*range(1, end + 2)]
        queue = [(ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]
        heapify(queue)
        while queue:
            rank, left = heappop(queue)
            right = after[left]
            if ranks.get((symbols[left], symbols[right])) != rank:
                continue  # an earlier merge has consumed one of the two
            symbols[left] += symbols[right]
            symbols[right] = ""
            after[left] = after[right]
            before[after[left]] = left
            for start in (before[left], left):
                if start >= 0:
                    new_rank = ranks.get((symbols[start], symbols[after[start]]))
                    if new_rank is not None:
                        heappush(queue, (new_rank, start))
        return [symbol for symbol in symbols if symbol]
