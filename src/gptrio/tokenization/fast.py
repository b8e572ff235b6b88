"""Tokenizers over the `tokenizers` library, with offsets and words."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar

from tokenizers import AddedToken, Encoding, Tokenizer

from gptrio.errors import TextTypeError, TokenizationError, UnknownArgumentError
from gptrio.hub import write_text
from gptrio.tokenization.backend import build_backend, set_lengths, set_prefix_space, take_backend_settings
from gptrio.tokenization.base import PreTrainedTokenizerBase
from gptrio.tokenization.batch_encoding import BatchEncoding
from gptrio.tokenization.bpe import has_surrogate, surrogate_error
from gptrio.tokenization.encoding import Sample
from gptrio.tokenization.options import EncodeOptions, TruncationStrategy, unknown_arguments
from gptrio.tokenization.prepare import Ids
from gptrio.tokenization.special_tokens import Token
from gptrio.tokenization.vocabulary import TOKENIZER_FILE, joined_path
from gptrio.utils.choices import PaddingStrategy

if TYPE_CHECKING:
    from typing_extensions import Self


class PreTrainedTokenizerFast(PreTrainedTokenizerBase):
    """A tokenizer of the `tokenizers` library behind the shared methods.

    Args:
        tokenizer_object: a `tokenizers.Tokenizer`.
        tokenizer_file: path of a `tokenizer.json`.
        vocab_file, merges_file: paths of vocabulary files, read if neither is given.
        from_slow: read the vocabulary files even if one of these is given.
        added_tokens_decoder: tokens that are never split, by id.
        add_prefix_space: put a space before the text.
        **kwargs: see `PreTrainedTokenizerBase`.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"tokenizer_file": TOKENIZER_FILE}
    is_fast = True

    def __init__(self, **kwargs: Any) -> None:
        added_tokens_decoder: dict[int, AddedToken] = kwargs.pop("added_tokens_decoder", {})
        self._tokenizer = build_backend(kwargs)
        self._lock = Lock()  # the backend keeps padding and truncation as state
        self.add_prefix_space: bool = bool(kwargs.get("add_prefix_space"))
        take_backend_settings(self._tokenizer, kwargs)
        set_lengths(self._tokenizer, None, None)
        super().__init__(**kwargs)
        self._tokenizer.encode_special_tokens = self.split_special_tokens
        self._register([token for _, token in sorted(added_tokens_decoder.items())])
        set_prefix_space(self._tokenizer, self.add_prefix_space)

    def _register(self, tokens: list[AddedToken]) -> None:
        """Add tokens in the order of their ids, then the special ones that are missing."""
        known = {*self.added_tokens_encoder, *map(str, tokens)}
        special = self.all_special_tokens
        missing = [t for t in self.all_special_tokens_extended if isinstance(t, AddedToken) or t not in known]
        for given in [*tokens, *(token for token in missing if token not in tokens)]:
            token = AddedToken(given) if isinstance(given, str) else given
            token.special = token.special or token.content in special
            self._tokenizer.add_tokens([token])

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the lock; the backend as JSON, without the truncation and padding of a call."""
        with self._lock:
            before = self._tokenizer.truncation, self._tokenizer.padding
            set_lengths(self._tokenizer, None, None)
            backend = self._tokenizer.to_str()
            set_lengths(self._tokenizer, *before)
        state = {name: value for name, value in super().__getstate__().items() if name != "_lock"}
        return {**state, "_tokenizer": backend}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state, with a new lock."""
        super().__setstate__({**state, "_tokenizer": Tokenizer.from_str(state["_tokenizer"]), "_lock": Lock()})
        self._tokenizer.encode_special_tokens = self.split_special_tokens

    # Vocabulary

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The tokenizer of the `tokenizers` library."""
        return self._tokenizer

    @property
    def decoder(self) -> Any:
        """The backend's decoder."""
        return self._tokenizer.decoder

    @property
    def vocab_size(self) -> int:
        """Number of tokens without those added."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=False))

    @property
    def vocab(self) -> dict[str, int]:
        """Token to id, with the added ones."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Tokens that are never split, by id."""
        return dict(sorted(self._tokenizer.get_added_tokens_decoder().items()))

    def get_vocab(self) -> dict[str, int]:
        """Token to id, with the added ones."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def _add_tokens(self, new_tokens: list[Token], special_tokens: bool) -> int:
        add = self._tokenizer.add_special_tokens if special_tokens else self._tokenizer.add_tokens
        return int(add(new_tokens))

    def _token_to_id(self, token: str | None) -> int | None:
        index = None if token is None else self._tokenizer.token_to_id(token)
        return self.unk_token_id if index is None and token not in (None, self.unk_token) else index

    def _id_to_token(self, index: int) -> str | None:
        token: str | None = self._tokenizer.id_to_token(index) if 0 <= index < 1 << 32 else None
        return token

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens into text."""
        decoder = self._tokenizer.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens encoding a text (or a pair) adds."""
        return int(self._tokenizer.num_special_tokens_to_add(pair))

    # Encoding and decoding

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """Split a text (or a pair) into tokens (`options`: see `EncodeOptions`)."""
        return self.encode_plus(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def _encode_one(self, sample: Sample, options: EncodeOptions) -> BatchEncoding:
        first, second = sample
        batch = self._encode_many([(first, second or None)], options)
        if options.return_tensors is not None or options.return_overflowing_tokens:
            return batch
        first_row = {key: value[0] if isinstance(value[0], list) else value for key, value in batch.items()}
        return BatchEncoding(first_row, batch.encodings)

    def _encode_many(self, samples: list[Sample], options: EncodeOptions) -> BatchEncoding:
        parts = [
            [encoding, *encoding.overflowing] if options.return_overflowing_tokens else [encoding]
            for encoding in self._run_backend(samples, options)
        ]
        rows = [encoding for part in parts for encoding in part]
        data = self._entries(rows, options)
        if options.return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = [i for i, part in enumerate(parts) for _ in part]
        self._warn_if_too_long(max(map(len, data["input_ids"])), options)
        return BatchEncoding(data, rows, tensor_type=options.return_tensors)

    def _run_backend(self, samples: list[Sample], options: EncodeOptions) -> list[Encoding]:
        if options.others:
            raise UnknownArgumentError(f"{unknown_arguments(options.others)}; leave it out")
        if options.add_prefix_space is not None:
            raise TokenizationError("add_prefix_space of a fast tokenizer is set when it is made, not in a call")
        split = self.split_special_tokens if options.split_special_tokens is None else options.split_special_tokens
        inputs: list[Any] = [first if second is None else (first, second) for first, second in samples]
        try:
            with self._lock:
                set_lengths(self._tokenizer, self._truncation(options), self._padding(options))
                self._tokenizer.encode_special_tokens = split
                try:
                    return list(
                        self._tokenizer.encode_batch(inputs, options.is_split_into_words, options.add_special_tokens)
                    )
                finally:  # undo the settings of this call
                    set_lengths(self._tokenizer, None, None)
                    self._tokenizer.encode_special_tokens = self.split_special_tokens
        except TypeError as error:
            raise _input_error(samples, error) from error
        except BaseException as error:  # Exception for impossible truncation, or a panic
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise TokenizationError(f"cannot encode: {str(error).rstrip(', ')}") from error

    def set_truncation_and_padding(
        self,
        padding_strategy: PaddingStrategy,
        truncation_strategy: TruncationStrategy,
        max_length: int,
        stride: int,
        pad_to_multiple_of: int | None,
        padding_side: str | None = None,
    ) -> None:
        """Set how `backend_tokenizer` truncates and pads when it is called itself; calls of this tokenizer undo it."""
        options = EncodeOptions(
            padding=padding_strategy,
            truncation=truncation_strategy,
            max_length=max_length,
            stride=stride,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
        )
        set_lengths(self._tokenizer, self._truncation(options), self._padding(options))

    def _truncation(self, options: EncodeOptions) -> dict[str, Any] | None:
        if options.truncation == TruncationStrategy.DO_NOT_TRUNCATE:
            return None
        assert options.max_length is not None, "checked when the options were resolved"
        strategy = TruncationStrategy(options.truncation).value
        lengths = {"max_length": options.max_length, "stride": options.stride}
        return {**lengths, "strategy": strategy, "direction": self.truncation_side}

    def _padding(self, options: EncodeOptions) -> dict[str, Any] | None:
        if options.padding == PaddingStrategy.DO_NOT_PAD:
            return None
        return {
            "direction": options.padding_side or self.padding_side,
            "pad_id": self.pad_token_id,
            "pad_type_id": self.pad_token_type_id,
            "pad_token": self.pad_token,
            "length": options.max_length if options.padding == PaddingStrategy.MAX_LENGTH else None,
            "pad_to_multiple_of": options.pad_to_multiple_of,
        }

    def _entries(self, rows: list[Encoding], options: EncodeOptions) -> dict[str, Any]:
        """Entries of the result, by name."""
        data: dict[str, Any] = {"input_ids": [row.ids for row in rows]}
        if self._is_returned("token_type_ids", options.return_token_type_ids):
            data["token_type_ids"] = [row.type_ids for row in rows]
        if self._is_returned("attention_mask", options.return_attention_mask):
            data["attention_mask"] = [row.attention_mask for row in rows]
        if options.return_special_tokens_mask:
            data["special_tokens_mask"] = [row.special_tokens_mask for row in rows]
        if options.return_offsets_mapping:
            data["offset_mapping"] = [row.offsets for row in rows]
        if options.return_length:
            data["length"] = [len(row.ids) for row in rows]
        return data

    def _decode(self, ids: Ids, skip_special_tokens: bool, spaces_between_special_tokens: bool) -> str:
        if ids and self._id_to_token(max(ids)) is None:
            unknown = sorted({index for index in ids if self._id_to_token(index) is None})
            self._warn_once("no token", f"ids {unknown} have no token in this vocabulary and decode to nothing")
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def train_new_from_iterator(
        self,
        text_iterator: Iterable[str] | Iterable[Sequence[str]],
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: Sequence[Token] | None = None,
        special_tokens_map: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return a tokenizer like this one whose vocabulary is learned from texts.

        Args:
            text_iterator: texts, or batches of texts.
            vocab_size: number of tokens to end with.
            length: number of items, for the progress bar.
            new_special_tokens: special tokens to add.
            special_tokens_map: new texts of special tokens, by the old ones.
            **kwargs: as for the trainer of the `tokenizers` library, such as `min_frequency` or `show_progress`.

        Raises:
            TokenizationError: a backend model that cannot be trained.
        """
        from gptrio.tokenization.training import train_new

        new = list(new_special_tokens or [])
        return train_new(self, text_iterator, vocab_size, length, new, special_tokens_map or {}, kwargs)

    # Files

    @property
    def can_save_slow_tokenizer(self) -> bool:
        """Whether `save_vocabulary` can write the vocabulary."""
        return True

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write the backend model's vocabulary files; return their paths."""
        return tuple(self._tokenizer.model.save(os.fspath(save_directory), filename_prefix))

    def _save_vocabularies(
        self, folder: str, legacy_format: bool | None, filename_prefix: str | None
    ) -> tuple[str, ...]:
        if legacy_format and self.slow_tokenizer_class is None:
            raise TokenizationError(f"{type(self).__name__} has no legacy format; leave legacy_format out")
        paths: tuple[str, ...] = ()
        if legacy_format is not False and self.slow_tokenizer_class is not None:
            paths += self.save_vocabulary(folder, filename_prefix)
            paths += self._save_added_tokens(folder, filename_prefix)
        if not legacy_format:
            path = joined_path(folder, filename_prefix, TOKENIZER_FILE)
            with self._lock:
                set_lengths(self._tokenizer, None, None)
                write_text(path, self._tokenizer.to_str(pretty=True))
            paths += (path,)
        return paths


def _input_error(samples: list[Sample], error: TypeError) -> TokenizationError:
    for sample in samples:
        for text in sample:
            for word in [text] if isinstance(text, str) else text or []:
                if isinstance(word, str) and has_surrogate(word):
                    return surrogate_error(word)
    return TextTypeError(f"cannot encode: {error}; expected strings, or with is_split_into_words=True lists of strings")
