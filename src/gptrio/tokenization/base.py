"""What every tokenizer is called by: encoding, padding, decoding and files, over a few methods of the subclasses."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from gptrio.errors import GptrioWarning, TokenizationError
from gptrio.tokenization.batch_encoding import BatchEncoding
from gptrio.tokenization.lengths import Ids, pad_example, padded_length, truncate
from gptrio.tokenization.options import (
    VERY_LARGE_INTEGER,
    EncodeOptions,
    PaddingStrategy,
    TruncationStrategy,
)
from gptrio.tokenization.special_tokens import AddedToken, SpecialTokensMixin
from gptrio.tokenization.tensors import kind_of, to_plain

Text = str | Sequence[str] | Sequence[int]
Sample = tuple[Text, Text | None]
Self = TypeVar("Self", bound="PreTrainedTokenizerBase")

_CLEAN_UP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


class PreTrainedTokenizerBase(SpecialTokensMixin):
    """Front shared by the tokenizers in Python and the fast ones.

    Args:
        model_max_length: most tokens the model takes.
        padding_side, truncation_side: "left" or "right".
        model_input_names: entries that a call returns by default.
        clean_up_tokenization_spaces: whether `decode` removes the space before punctuation by default.
        split_special_tokens: treat special tokens in the text as ordinary text.
        chat_template: kept for the round trip; a template, or several by name.
        extra_special_tokens: special tokens with attributes of their own, by attribute name.
        name_or_path: where it was loaded from.
        **kwargs: special tokens; anything else is kept for the round trip.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {}
    model_input_names: Sequence[str] = ("input_ids", "token_type_ids", "attention_mask")
    padding_side: str = "right"
    truncation_side: str = "right"
    slow_tokenizer_class: ClassVar[type[PreTrainedTokenizerBase] | None] = None
    is_fast: ClassVar[bool] = False

    def __init__(self, **kwargs: Any) -> None:
        """Take the settings out of the keyword arguments."""
        for name in kwargs:
            if callable(getattr(type(self), name, None)):
                raise TokenizationError(
                    f"setting {name!r} has the name of a method of {type(self).__name__}; rename it"
                )
        self.init_inputs: tuple[Any, ...] = ()
        self.init_kwargs: dict[str, Any] = copy.deepcopy(kwargs)
        self.name_or_path: str = kwargs.pop("name_or_path", "")
        limit = kwargs.pop("model_max_length", kwargs.pop("max_len", None))
        self.model_max_length: int = VERY_LARGE_INTEGER if limit is None else limit
        self.padding_side = _side(kwargs.pop("padding_side", self.padding_side), "padding_side")
        self.truncation_side = _side(kwargs.pop("truncation_side", self.truncation_side), "truncation_side")
        self.model_input_names = list(kwargs.pop("model_input_names", self.model_input_names))
        self.clean_up_tokenization_spaces: bool = kwargs.pop("clean_up_tokenization_spaces", False)
        self.split_special_tokens: bool = kwargs.pop("split_special_tokens", False)
        template = kwargs.pop("chat_template", None)
        if isinstance(template, (list, tuple)):
            template = {item["name"]: item["template"] for item in template}
        self.chat_template: str | dict[str, str] | None = template
        self.extra_special_tokens: dict[str, Any] = kwargs.pop("extra_special_tokens", {})
        self._warned: set[str] = set()
        super().__init__(**kwargs)
        self.SPECIAL_TOKENS_ATTRIBUTES = [*self.SPECIAL_TOKENS_ATTRIBUTES, *self.extra_special_tokens]
        self._special_tokens_map.update(self.extra_special_tokens)

    # What a subclass provides

    @property
    def vocab_size(self) -> int:
        """Number of tokens without those added."""
        raise NotImplementedError

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Tokens that are never split, by id."""
        raise NotImplementedError

    def get_vocab(self) -> dict[str, int]:
        """Token to id, with the added ones."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Return the number of tokens, with the added ones."""
        raise NotImplementedError

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens encoding a text (or a pair) adds."""
        raise NotImplementedError

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """Split a text (or a pair) into tokens."""
        raise NotImplementedError

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens into text."""
        raise NotImplementedError

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write the vocabulary files and return their paths."""
        raise NotImplementedError

    def _encode_one(self, sample: Sample, options: EncodeOptions) -> BatchEncoding:
        raise NotImplementedError

    def _encode_many(self, samples: list[Sample], options: EncodeOptions) -> BatchEncoding:
        raise NotImplementedError

    def _decode(self, ids: Ids, skip_special_tokens: bool, spaces_between_special_tokens: bool) -> str:
        raise NotImplementedError

    # Encoding

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        **options: Any,
    ) -> BatchEncoding:
        """Encode a text, a batch of texts, or (with `is_split_into_words`) lists of words.

        Args:
            text: string, list of strings, or lists of words.
            text_pair: second text of a pair, in the same form.
            text_target, text_pair_target: texts whose ids become the entry `labels`.
            **options: see `EncodeOptions`.

        Returns:
            Lists (or tensors) by name: `input_ids`, `attention_mask` and what else was asked for.

        Raises:
            TokenizationError: input of another form, or options that do not fit.
        """
        if text is None and text_target is None:
            raise TokenizationError("nothing to encode: give text or text_target")
        encodings = None if text is None else self._call_one(text, text_pair, options)
        if text_target is None:
            assert encodings is not None
            return encodings
        targets = self._call_one(text_target, text_pair_target, options)
        if encodings is None:
            return targets
        encodings["labels"] = targets["input_ids"]
        return encodings

    def _call_one(self, text: Any, text_pair: Any, options: dict[str, Any]) -> BatchEncoding:
        split = bool(options.get("is_split_into_words"))
        for given in (text,) if text_pair is None else (text, text_pair):
            if not _is_text(given):
                raise TokenizationError(
                    f"text is {_short(given)}; expected a string, a list of strings, or with is_split_into_words=True "
                    "lists of words"
                )
        is_batch = isinstance(text, (list, tuple)) and (not split or bool(text and isinstance(text[0], (list, tuple))))
        if not is_batch:
            return self.encode_plus(text, text_pair, **options)
        if text_pair is None:
            return self.batch_encode_plus(text, **options)
        if isinstance(text_pair, str) or len(text) != len(text_pair):
            count = "one string" if isinstance(text_pair, str) else f"{len(text_pair)} texts"
            raise TokenizationError(f"text is a batch of {len(text)} and text_pair {count}; expected as many of both")
        return self.batch_encode_plus(list(zip(text, text_pair, strict=True)), **options)

    def encode(self, text: Text, text_pair: Text | None = None, **options: Any) -> Any:
        """Return the ids of one text or pair (`options`: see `EncodeOptions`)."""
        return self.encode_plus(text, text_pair, **options)["input_ids"]

    def encode_plus(self, text: Text, text_pair: Text | None = None, **options: Any) -> BatchEncoding:
        """Encode one text or pair (`options`: see `EncodeOptions`)."""
        return self._encode_one((text, text_pair), self._resolve(EncodeOptions(**options)))

    def batch_encode_plus(self, batch_text_or_text_pairs: Sequence[Any], **options: Any) -> BatchEncoding:
        """Encode a batch of texts, or of pairs as tuples (`options`: see `EncodeOptions`)."""
        if not isinstance(batch_text_or_text_pairs, (list, tuple)) or not batch_text_or_text_pairs:
            raise TokenizationError(
                f"the batch is {_short(batch_text_or_text_pairs)}; expected a list of at least one text"
            )
        resolved = self._resolve(EncodeOptions(**options))
        samples = [as_pair(item, resolved.is_split_into_words) for item in batch_text_or_text_pairs]
        return self._encode_many(samples, resolved)

    def _resolve(self, options: EncodeOptions) -> EncodeOptions:
        pad_id = self.pad_token_id
        return options.resolve(self.model_max_length, pad_id, self._warn_once if options.verbose else lambda *_: None)

    # Lengths

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad encoded texts: `input_ids`, `attention_mask`, `token_type_ids` and `special_tokens_mask`.

        Args:
            encoded_inputs: an encoding, a batch of them, or a list of encodings of single texts.
            padding, max_length, pad_to_multiple_of, padding_side, return_attention_mask, return_tensors, verbose:
                see `EncodeOptions`.
        """
        if isinstance(encoded_inputs, (list, tuple)) and encoded_inputs and isinstance(encoded_inputs[0], Mapping):
            encoded_inputs = {key: [example[key] for example in encoded_inputs] for key in encoded_inputs[0]}
        main = self.model_input_names[0]
        if not isinstance(encoded_inputs, Mapping) or main not in encoded_inputs:
            raise TokenizationError(f"cannot pad {_short(encoded_inputs)}: expected encodings with an entry {main!r}")
        first = encoded_inputs[main]
        inputs = {key: to_plain(value) for key, value in encoded_inputs.items()}
        if not inputs[main]:
            return BatchEncoding(inputs | ({"attention_mask": []} if return_attention_mask else {}))
        return_tensors = return_tensors or kind_of(first) or kind_of(first[0])
        options = self._resolve(
            EncodeOptions(
                padding=padding,
                max_length=max_length,
                pad_to_multiple_of=pad_to_multiple_of,
                padding_side=padding_side,
                return_attention_mask=return_attention_mask,
                verbose=verbose,
            )
        )
        if not isinstance(inputs[main][0], list):
            return BatchEncoding(self._pad_rows([inputs], options)[0], tensor_type=return_tensors)
        batch = len(inputs[main])
        uneven = {key: len(value) for key, value in inputs.items() if len(value) != batch}
        if uneven:
            raise TokenizationError(f"cannot pad: {main} has {batch} rows, but {uneven}")
        rows = self._pad_rows([{key: value[i] for key, value in inputs.items()} for i in range(batch)], options)
        return BatchEncoding({key: [row[key] for row in rows] for key in rows[0]}, tensor_type=return_tensors)

    def _pad_rows(self, rows: list[dict[str, Any]], options: EncodeOptions) -> list[dict[str, Any]]:
        """Add attention masks and pad, as the (resolved) options say."""
        main = self.model_input_names[0]
        fill = {"token_type_ids": self.pad_token_type_id, "special_tokens_mask": 1}
        if options.return_attention_mask or (
            options.return_attention_mask is None and "attention_mask" in self.model_input_names
        ):
            fill["attention_mask"] = 0
            rows = [row if "attention_mask" in row else {**row, "attention_mask": [1] * len(row[main])} for row in rows]
        if options.padding == PaddingStrategy.DO_NOT_PAD:
            return rows
        if options.padding == PaddingStrategy.LONGEST or options.max_length is None:
            length = max(len(row[main]) for row in rows)
        else:
            length = options.max_length
        length = padded_length(length, options.pad_to_multiple_of)
        pad_id = self.pad_token_id
        assert pad_id is not None, "resolving the options made sure of it"
        return [
            pad_example(row, length, options.padding_side or self.padding_side, {main: pad_id, **fill}) for row in rows
        ]

    def truncate_sequences(
        self,
        ids: Ids,
        pair_ids: Ids | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str = "longest_first",
        stride: int = 0,
    ) -> tuple[Ids, Ids | None, Ids]:
        """Cut tokens from one or two texts; return both and the overflow (see `EncodeOptions`)."""
        strategy = TruncationStrategy(truncation_strategy)
        return truncate(ids, pair_ids, num_tokens_to_remove, strategy, stride, self.truncation_side)

    # Special tokens around texts

    def build_inputs_with_special_tokens(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """Put the model's special tokens around one or two texts."""
        return token_ids_0 + (token_ids_1 or [])

    def create_token_type_ids_from_sequences(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """Return 0 for each token of the first text and 1 for each of the second, special tokens as in BERT."""
        ends = int(self.sep_token_id is not None)
        first = int(self.cls_token_id is not None) + len(token_ids_0) + ends
        return [0] * first + ([] if token_ids_1 is None else [1] * (len(token_ids_1) + ends))

    def get_special_tokens_mask(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Return 1 for special tokens and 0 for others, for ids that already hold their special tokens."""
        if not already_has_special_tokens or token_ids_1 is not None:
            raise TokenizationError(
                "get_special_tokens_mask of this tokenizer takes one list of ids with already_has_special_tokens=True; "
                "for the tokens that a call adds, use return_special_tokens_mask=True"
            )
        special = set(self.all_special_ids)
        return [int(index in special) for index in token_ids_0]

    @property
    def max_len_single_sentence(self) -> int:
        """Most tokens of one text, beside the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=False)

    @property
    def max_len_sentences_pair(self) -> int:
        """Most tokens of a pair, beside the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    # Decoding

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """Turn ids into text.

        Args:
            token_ids: an id, a list of ids, or a tensor (T,).
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: remove the space before punctuation; the tokenizer's setting when None.
            spaces_between_special_tokens: put a space beside added tokens (tokenizers in Python only).

        Raises:
            TokenizationError: something is no id.
        """
        ids = to_plain(token_ids)
        ids = [ids] if isinstance(ids, int) else ids
        for index in ids if isinstance(ids, list) else [ids]:
            if not isinstance(index, int) or not 0 <= index < 1 << 32:
                raise TokenizationError(
                    f"{_short(index)} is no token id; decode takes one text's ids, batch_decode several"
                )
        text = self._decode(ids, skip_special_tokens, spaces_between_special_tokens)
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return self.clean_up_tokenization(text) if clean else text

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **options: Any) -> list[str]:
        """Turn ids (B, T) into texts (`options` as for `decode`)."""
        return [self.decode(ids, skip_special_tokens, **options) for ids in sequences]

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """Remove the space before punctuation and contractions that splitting into words left."""
        for old, new in _CLEAN_UP:
            out_string = out_string.replace(old, new)
        return out_string

    # Files

    @classmethod
    def from_pretrained(
        cls: type[Self], pretrained_model_name_or_path: str | os.PathLike[str], *inputs: Any, **kwargs: Any
    ) -> Self:
        """Load a tokenizer from a folder, a packaged model or the hub.

        Args:
            pretrained_model_name_or_path: folder, "gptrio/stdlib-gpt2", or hub id.
            *inputs: positional arguments of the class.
            **kwargs: `HubOptions`, and settings that go before those of the files.

        Raises:
            CheckpointNotFoundError: a needed file is missing.
            TokenizationError: a file is malformed.
            UnsupportedError: `trust_remote_code=True`.
        """
        from gptrio.tokenization.files import load_tokenizer

        return load_tokenizer(cls, pretrained_model_name_or_path, inputs, kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> tuple[str, ...]:
        """Write every file of the tokenizer, in the form that Transformers reads.

        Args:
            save_directory: folder, made if need be.
            legacy_format: True for vocabulary files only, False for `tokenizer.json` only, None for what there is.
            filename_prefix: put before each file name, with a dash.
            push_to_hub: upload the folder afterwards, to `repo_id` (the folder's name by default).
            **kwargs: `save_jinja_files=False` keeps chat templates in the configuration; the rest as `push_to_hub`.

        Returns:
            Paths of the files.
        """
        from gptrio.tokenization.files import save_tokenizer

        paths = save_tokenizer(
            self, save_directory, legacy_format, filename_prefix, kwargs.pop("save_jinja_files", True)
        )
        if push_to_hub:
            from gptrio.hub import push_folder

            push_folder(
                save_directory, kwargs.pop("repo_id", os.path.basename(os.path.normpath(save_directory))), **kwargs
            )
        return paths

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the tokenizer's files to a hub repository (`options`: see `push_folder`); return the commit's address."""
        from gptrio.hub import save_and_push

        return save_and_push(self.save_pretrained, repo_id, **options)

    # Small things

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Added token to id, by id."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """Added token to id."""
        return self.added_tokens_encoder

    def _warn_once(self, key: str, message: str) -> None:
        """Warn at the first call with this key."""
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, GptrioWarning, stacklevel=6)

    def _warn_if_too_long(self, length: int, options: EncodeOptions) -> None:
        if options.verbose and options.max_length is None and length > self.model_max_length > 0:
            self._warn_once(
                "too long",
                f"the text has {length} tokens, the model takes {self.model_max_length}; cut it with truncation=True",
            )

    def __repr__(self) -> str:
        """Name the class and its settings."""
        added = "\n\t".join(f"{index}: {token!r}," for index, token in self.added_tokens_decoder.items())
        return (
            f"{type(self).__name__}(name_or_path='{self.name_or_path}', vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length}, is_fast={self.is_fast}, padding_side='{self.padding_side}', "
            f"truncation_side='{self.truncation_side}', special_tokens={self.special_tokens_map}, "
            f"clean_up_tokenization_spaces={self.clean_up_tokenization_spaces}, "
            f"added_tokens_decoder={{\n\t{added}\n}}\n)"
        )


def as_pair(item: Any, is_split_into_words: bool) -> Sample:
    """Tell a pair of texts from one text in a batch.

    Raises:
        TokenizationError: a tuple or list of other than two texts.
    """
    if not isinstance(item, (list, tuple)) or (item and isinstance(item[0], int)):
        return item, None
    if is_split_into_words and not (item and isinstance(item[0], (list, tuple))):
        return item, None
    if len(item) != 2:
        raise TokenizationError(
            f"{_short(item)} in the batch is no text and no pair; for lists of words set is_split_into_words=True"
        )
    return item[0], item[1]


def _is_text(value: Any) -> bool:
    """Whether the first elements look like a text, a batch of texts, or (batches of) lists of words."""
    for _ in range(3):
        if isinstance(value, str):
            return True
        if not isinstance(value, (list, tuple)):
            return False
        if not value:
            return True
        value = value[0]
    return False


def _side(value: Any, name: str) -> str:
    if value not in ("left", "right"):
        raise TokenizationError(f"{name} is {value!r}; expected 'left' or 'right'")
    return str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"
