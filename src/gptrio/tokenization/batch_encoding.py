"""The result of a tokenizer call: lists or tensors by name, and for fast tokenizers the way back to words and text."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from gptrio.errors import TokenizationError, UnsupportedError, warn
from gptrio.tokenization.tensors import to_tensor

if TYPE_CHECKING:
    import torch


class _Encoding(Protocol):
    """The attributes of `tokenizers.Encoding` that are used; the library has no types."""

    ids: list[int]
    tokens: list[str]
    word_ids: list[int | None]
    sequence_ids: list[int | None]
    n_sequences: int

    def token_to_sequence(self, token_index: int) -> int | None: ...
    def token_to_word(self, token_index: int) -> int | None: ...
    def token_to_chars(self, token_index: int) -> tuple[int, int] | None: ...
    def word_to_tokens(self, word_index: int, sequence_index: int) -> tuple[int, int] | None: ...
    def word_to_chars(self, word_index: int, sequence_index: int) -> tuple[int, int] | None: ...
    def char_to_token(self, char_pos: int, sequence_index: int) -> int | None: ...
    def char_to_word(self, char_pos: int, sequence_index: int) -> int | None: ...


class CharSpan(NamedTuple):
    """Characters `start` to `end` (exclusive) of the text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` to `end` (exclusive) of an encoding."""

    start: int
    end: int


class BatchEncoding(UserDict[str, Any]):
    """A mapping of `input_ids`, `attention_mask`, ... whose entries are also attributes.

    The methods from `tokens` on need the encodings of a fast tokenizer. Those that take `(batch_index, index)` may be
    called with the index alone for the first text; `sequence_index` selects the text of a pair.

    Args:
        data: the entries.
        encoding: encoding(s) of the fast tokenizer, one for each row.
        tensor_type: "pt", "np" or "jax" to turn the entries into tensors.
        prepend_batch_axis: make a batch of one of each entry, for tensors of a single text.
        n_sequences: 1 for texts, 2 for pairs.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        encoding: _Encoding | Sequence[_Encoding] | None = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ) -> None:
        super().__init__(data)
        rows = encoding if encoding is None or isinstance(encoding, Sequence) else [encoding]
        self._encodings: list[_Encoding] | None = None if rows is None else list(rows)
        self._n_sequences = rows[0].n_sequences if n_sequences is None and rows else n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    @property
    def n_sequences(self) -> int | None:
        """1 for single texts, 2 for pairs, None when unknown."""
        return self._n_sequences

    @property
    def is_fast(self) -> bool:
        """Whether a fast tokenizer made it."""
        return self._encodings is not None

    @property
    def encodings(self) -> list[_Encoding] | None:
        """The fast tokenizer's encodings, one for each row."""
        return self._encodings

    def __getitem__(self, item: Any) -> Any:
        """Entry by name, row's encoding by number, or every entry cut by a slice."""
        if isinstance(item, str):
            return self.data[item]
        if self._encodings is not None:
            return self._encodings[item]
        if isinstance(item, slice):
            return {key: value[item] for key, value in self.data.items()}
        raise KeyError(f"{item!r}: expected an entry's name or a slice; rows by number need a fast tokenizer")

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name not in self.data:  # "data" is missing while unpickling
            raise AttributeError(f"BatchEncoding has no entry {name!r}")
        return self.data[name]

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> BatchEncoding:
        """Turn the entries into tensors of shape (B, T) (in place).

        Raises:
            TokenizationError: rows have different lengths, or entries are not numbers.
            UnsupportedError: an unknown kind of tensor.
        """
        if tensor_type is not None:
            for key, value in self.data.items():
                self.data[key] = to_tensor([value] if prepend_batch_axis else value, tensor_type, key)
        return self

    def to(self, device: str | int | torch.device, *, non_blocking: bool = False) -> BatchEncoding:
        """Move the torch tensors to a device (in place)."""
        for key, value in self.data.items():
            if callable(getattr(value, "to", None)):
                self.data[key] = value.to(device=device, non_blocking=non_blocking)
        return self

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Tokens of a row."""
        return self._row(batch_index).tokens

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """0 or 1 for each token: the text of a pair it comes from; None for special tokens."""
        return self._row(batch_index).sequence_ids

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Number of the word each token comes from; None for special tokens."""
        return self._row(batch_index).word_ids

    def words(self, batch_index: int = 0) -> list[int | None]:
        """Return `word_ids`, under its older name."""
        ids = self.word_ids(batch_index)
        warn("BatchEncoding.words() is the older name of word_ids(); call that")
        return ids

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """0 or 1: the text of a pair that a token comes from."""
        row, token = self._locate_token(batch_or_token_index, token_index)
        return row.token_to_sequence(token)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Number of the word that a token comes from."""
        row, token = self._locate_token(batch_or_token_index, token_index)
        return row.token_to_word(token)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """Characters that a token covers; None for special tokens."""
        row, token = self._locate_token(batch_or_token_index, token_index)
        span = row.token_to_chars(token)
        return CharSpan(*span) if span is not None else None

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """Tokens that make up a word."""
        row, word = self._locate(batch_or_word_index, word_index)
        span = row.word_to_tokens(word, sequence_index)
        return TokenSpan(*span) if span is not None else None

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """Characters of a word; None when there is no such word."""
        row, word = self._locate(batch_or_word_index, word_index)
        span = row.word_to_chars(word, sequence_index)
        return CharSpan(*span) if span is not None else None

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Token that covers a character."""
        row, char = self._locate(batch_or_char_index, char_index)
        return row.char_to_token(char, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Number of the word that covers a character."""
        row, char = self._locate(batch_or_char_index, char_index)
        return row.char_to_word(char, sequence_index)

    def _row(self, batch_index: int) -> _Encoding:
        if self._encodings is None:
            raise UnsupportedError(
                "words, characters and offsets are known for fast tokenizers only; use the class ending in Fast"
            )
        try:
            return self._encodings[batch_index]
        except IndexError:
            raise TokenizationError(f"no row {batch_index} in a batch of {len(self._encodings)}") from None

    def _locate(self, first: int, second: int | None) -> tuple[_Encoding, int]:
        """Row and index from `(batch_index, index)` or from the index alone."""
        return (self._row(0), first) if second is None else (self._row(first), second)

    def _locate_token(self, first: int, second: int | None) -> tuple[_Encoding, int]:
        row, index = self._locate(first, second)
        return row, index + len(row.ids) if index < 0 else index
