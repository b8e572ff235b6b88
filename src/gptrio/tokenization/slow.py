"""Tokenizers in Python: added tokens, and the steps from pieces of text to padded ids."""

from __future__ import annotations

import re
from abc import abstractmethod
from itertools import chain
from typing import Any

from gptrio.errors import TextTypeError, TokenizationError, UnsupportedError
from gptrio.tokenization.base import PreTrainedTokenizerBase
from gptrio.tokenization.batch_encoding import BatchEncoding
from gptrio.tokenization.bpe import surrogate_error
from gptrio.tokenization.encoding import Sample, Text
from gptrio.tokenization.options import EncodeOptions, unknown_arguments
from gptrio.tokenization.prepare import Ids
from gptrio.tokenization.special_tokens import AddedToken, Token


class PreTrainedTokenizer(PreTrainedTokenizerBase):
    """Base of the tokenizers in Python.

    A subclass provides `_tokenize`, `_convert_token_to_id`, `_convert_id_to_token`, `convert_tokens_to_string`,
    `vocab_size`, `get_vocab` and `save_vocabulary`, and calls this `__init__` after it has read its vocabulary.

    Args:
        added_tokens_decoder: tokens that are never split, by id.
        **kwargs: see `PreTrainedTokenizerBase`.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._added_tokens_decoder: dict[int, AddedToken] = dict(kwargs.pop("added_tokens_decoder", {}))
        self._added_tokens_encoder = {token.content: index for index, token in self._added_tokens_decoder.items()}
        super().__init__(**kwargs)
        special = self.all_special_tokens_extended
        self._add_tokens([token for token in special if token not in self._added_tokens_encoder], special_tokens=True)

    @abstractmethod
    def _tokenize(self, text: str) -> list[str]:
        """Split a text that holds no added tokens."""

    @abstractmethod
    def _convert_token_to_id(self, token: str) -> int | None:
        """Id of a token of the vocabulary; the unknown token's, or None, for others."""

    @abstractmethod
    def _convert_id_to_token(self, index: int) -> str | None:
        """Token of the vocabulary with an id; None if there is none."""

    # Added tokens

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Tokens that are never split, by id."""
        return dict(sorted(self._added_tokens_decoder.items()))

    @property
    def total_vocab_size(self) -> int:
        """Number of tokens, with the added ones."""
        return self._total_vocab_size

    def __len__(self) -> int:
        return self._total_vocab_size

    def _add_tokens(self, new_tokens: list[Token], special_tokens: bool) -> int:
        vocab = self.get_vocab()
        size = len(vocab)
        for given in new_tokens:
            if not str(given) or (isinstance(given, str) and given in self._added_tokens_encoder):
                continue
            token = self._as_added(given, special_tokens)
            if token.special and token.content not in self.all_special_tokens:
                before = self._special_tokens_map["additional_special_tokens"] or []
                self._special_tokens_map["additional_special_tokens"] = [*before, token]
            index = vocab.setdefault(token.content, len(vocab))
            self._added_tokens_decoder[index] = token
            self._added_tokens_encoder[token.content] = index
        self._total_vocab_size = len(vocab)
        longest_first = sorted(self._added_tokens_encoder, key=len, reverse=True)
        self._added_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        return len(vocab) - size

    def _as_added(self, token: Token, special: bool) -> AddedToken:
        if isinstance(token, AddedToken):
            state = token.__getstate__() | {"special": token.special or special}
            return AddedToken(**state)
        special = special or token in self.all_special_tokens
        return AddedToken(token, normalized=not special, special=special)

    # Text to tokens

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """Split a text (or a pair) into tokens.

        Args:
            text: text.
            pair: second text.
            add_special_tokens: add the model's special tokens.
            **options: `split_special_tokens`, `is_split_into_words`, `add_prefix_space` of `EncodeOptions`.
        """
        parsed = EncodeOptions.of(options)
        tokens = self._split(text, parsed, parsed.is_split_into_words)
        pair_tokens = None if pair is None else self._split(pair, parsed, parsed.is_split_into_words)
        if not add_special_tokens:
            return tokens + (pair_tokens or [])
        pair_ids = None if pair_tokens is None else self._known_ids(pair_tokens)
        ids = self.build_inputs_with_special_tokens(self._known_ids(tokens), pair_ids)
        return list(self.convert_ids_to_tokens(ids))

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        """Change a text before it is split; subclasses may override it.

        Args:
            text: a text, or one of its words.
            is_split_into_words: whether it is a word.
            **kwargs: arguments of the call that are not in `EncodeOptions`.

        Returns:
            The text to split, and the arguments that were not used.
        """
        return text, kwargs

    def _split(self, text: str, options: EncodeOptions, is_word: bool) -> list[str]:
        """Split a text at added tokens, and the pieces between them; `is_word` for a word of a list of words."""
        whole = self.split_special_tokens if options.split_special_tokens is None else options.split_special_tokens
        given = dict(options.others)
        if options.add_prefix_space is not None:
            given["add_prefix_space"] = options.add_prefix_space
        prepared, unknown = self.prepare_for_tokenization(text, is_word, **given)
        if unknown:
            self._warn_once(f"unknown {sorted(unknown)}", f"{unknown_arguments(unknown)}; it has no effect")
        pieces = [prepared]
        if not whole and self._added_pattern is not None:
            pieces = self._strip_around_added([piece for piece in self._added_pattern.split(pieces[0]) if piece])
        added = {} if whole else self._added_tokens_encoder
        try:
            return [token for piece in pieces for token in ([piece] if piece in added else self._tokenize(piece))]
        except UnicodeEncodeError as error:
            raise surrogate_error(text) from error

    def _strip_around_added(self, pieces: list[str]) -> list[str]:
        """Merge white space beside added tokens into them, and added tokens inside of words into the words."""
        for i, piece in enumerate(pieces):
            if piece not in self._added_tokens_encoder:
                continue
            token = self._added_tokens_decoder[self._added_tokens_encoder[piece]]
            left = pieces[i - 1] if i > 0 else ""
            right = pieces[i + 1] if i + 1 < len(pieces) else ""
            if token.rstrip and right:
                pieces[i + 1] = right.lstrip()
            if token.lstrip and left:
                pieces[i - 1] = left.rstrip()
            if token.single_word and left and left[-1] != " ":
                pieces[i - 1], pieces[i] = pieces[i - 1] + piece, ""
            elif token.single_word and right and right[0] != " ":
                pieces[i], pieces[i + 1] = "", piece + pieces[i + 1]
        return pieces

    # Tokens and ids

    def _token_to_id(self, token: str | None) -> int | None:
        if token is None:
            return None
        index = self._added_tokens_encoder.get(token)
        return self._convert_token_to_id(token) if index is None else index

    def _known_ids(self, tokens: list[str]) -> Ids:
        ids: Ids = self.convert_tokens_to_ids(tokens)
        if None in ids:
            unknown = tokens[ids.index(None)]  # type: ignore[arg-type]  # the position of None
            raise TokenizationError(
                f"token {unknown!r} is not in the vocabulary and there is no unk_token to replace it"
            )
        return ids

    def _id_to_token(self, index: int) -> str | None:
        added = self._added_tokens_decoder.get(index)
        return self._convert_id_to_token(index) if added is None else added.content

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens encoding a text (or a pair) adds."""
        return len(self.build_inputs_with_special_tokens([], [] if pair else None))

    def get_special_tokens_mask(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Return 1 for special tokens and 0 for others, after special tokens are added to these ids."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        return [0] * (len(token_ids_0) + len(token_ids_1 or []))

    # Encoding

    def _encode_one(self, sample: Sample, options: EncodeOptions) -> BatchEncoding:
        first, second = self._sample_ids(sample, options)
        row = self._finish_row(self._prepare(first, second, options), options)
        return BatchEncoding(row, tensor_type=options.return_tensors, prepend_batch_axis=True)

    def _encode_many(self, samples: list[Sample], options: EncodeOptions) -> BatchEncoding:
        rows = [self._prepare(*self._sample_ids(sample, options), options) for sample in samples]
        if options.return_length:
            rows = [{**row, "length": len(row["input_ids"])} for row in rows]
        rows = self._pad_rows(rows, options)
        return BatchEncoding({key: [row[key] for row in rows] for key in rows[0]}, tensor_type=options.return_tensors)

    def _sample_ids(self, sample: Sample, options: EncodeOptions) -> tuple[Ids, Ids | None]:
        if options.return_offsets_mapping:
            raise UnsupportedError("return_offsets_mapping needs a fast tokenizer; use the class ending in Fast")
        first, second = sample
        return self._text_ids(first, options), None if second is None else self._text_ids(second, options)

    def _text_ids(self, text: Text, options: EncodeOptions) -> Ids:
        if isinstance(text, str):
            return self._known_ids(self._split(text, options, is_word=False))
        if isinstance(text, (list, tuple)):
            if all(isinstance(item, int) for item in text):
                return list(text)
            if all(isinstance(item, str) for item in text):
                words = (
                    (self._split(word, options, is_word=True) for word in text)
                    if options.is_split_into_words
                    else [text]
                )
                return self._known_ids(list(chain.from_iterable(words)))
        raise TextTypeError(f"{text!r} is not text; expected a string, a list of strings or a list of ids")

    # Tokens to text

    def _decode(self, ids: Ids, skip_special_tokens: bool, spaces_between_special_tokens: bool) -> str:
        special = set(self.all_special_tokens)
        texts: list[str] = []
        run: list[str] = []
        for index in ids:
            token = self._id_to_token(index)
            if token is None:
                raise TokenizationError(f"id {index} is not in the vocabulary of {len(self)} tokens")
            if skip_special_tokens and token in special:
                continue
            if self._stands_alone(token, special):
                texts += [self.convert_tokens_to_string(run), token] if run else [token]
                run = []
            else:
                run.append(token)
        texts += [self.convert_tokens_to_string(run)] if run else []
        return (" " if spaces_between_special_tokens else "").join(texts)

    def _stands_alone(self, token: str, special: set[str]) -> bool:
        """Whether a token is plain text rather than written in the byte alphabet of the vocabulary."""
        if token not in self._added_tokens_encoder:
            return False
        additional = (
            token in (self.additional_special_tokens or ()) and self._added_tokens_encoder[token] >= self.vocab_size
        )
        return token not in special or additional

    # Files

    def _save_vocabularies(
        self, folder: str, legacy_format: bool | None, filename_prefix: str | None
    ) -> tuple[str, ...]:
        if legacy_format is False:
            raise TokenizationError("legacy_format=False writes a tokenizer.json, which needs a fast tokenizer")
        return (*self.save_vocabulary(folder, filename_prefix), *self._save_added_tokens(folder, filename_prefix))
