"""The tokenizers of GPT-2 and GPT-Neo: byte-level BPE in Python, and over the `tokenizers` library."""

from __future__ import annotations

import os
from typing import Any, ClassVar, cast

from gptrio.errors import TokenizationError
from gptrio.hub import write_text
from gptrio.tokenization.backend import put_before_texts
from gptrio.tokenization.batch_encoding import BatchEncoding
from gptrio.tokenization.bpe import WORD_PATTERN, ByteLevelBPE, byte_alphabet, from_alphabet
from gptrio.tokenization.encoding import Sample
from gptrio.tokenization.fast import PreTrainedTokenizerFast
from gptrio.tokenization.options import EncodeOptions
from gptrio.tokenization.prepare import Ids
from gptrio.tokenization.slow import PreTrainedTokenizer
from gptrio.tokenization.special_tokens import AddedToken, Token
from gptrio.tokenization.vocabulary import joined_path, read_model, write_json

_END_OF_TEXT = "<|endoftext|>"
VOCAB_FILES_NAMES = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}


def _as_added_tokens(special: dict[str, Token | None]) -> dict[str, AddedToken | None]:
    """Special tokens as `AddedToken`s; `normalized` is True unless the caller set it, as for ordinary tokens."""
    tokens = {name: AddedToken(token) if isinstance(token, str) else token for name, token in special.items()}
    return {
        name: AddedToken(**token.__getstate__()) if isinstance(token, AddedToken) else token
        for name, token in tokens.items()
    }


class GPT2Tokenizer(PreTrainedTokenizer):
    """Byte-level BPE in Python, exact. A word's tokens depend on whether a space stands before it.

    Args:
        vocab_file: path of a `vocab.json`.
        merges_file: path of a `merges.txt`.
        errors: how `decode` treats bytes that are not UTF-8, as in `bytes.decode`.
        unk_token, bos_token, eos_token, pad_token: special tokens.
        add_prefix_space: put a space before the text, so that its first word is like any other.
        add_bos_token: put the bos token before each text.
        **kwargs: `tokenizer_file`, path of a `tokenizer.json` that is read if a vocabulary file is missing; and see
            `PreTrainedTokenizerBase`.
    """

    vocab_files_names: ClassVar[dict[str, str]] = VOCAB_FILES_NAMES
    model_input_names = ("input_ids", "attention_mask")

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        merges_file: str | os.PathLike[str] | None = None,
        errors: str = "replace",
        unk_token: Token | None = _END_OF_TEXT,
        bos_token: Token | None = _END_OF_TEXT,
        eos_token: Token | None = _END_OF_TEXT,
        pad_token: Token | None = None,
        add_prefix_space: bool = False,
        add_bos_token: bool = False,
        **kwargs: Any,
    ) -> None:
        vocab, merges = read_model(vocab_file, merges_file, kwargs.get("tokenizer_file"))
        self._bpe = ByteLevelBPE(vocab, merges)
        self.encoder = vocab
        self.decoder = {index: token for token, index in vocab.items()}
        self.byte_encoder = byte_alphabet()
        self.byte_decoder = {char: byte for byte, char in self.byte_encoder.items()}
        self.errors = errors
        self.add_prefix_space = bool(add_prefix_space)
        self.add_bos_token = bool(add_bos_token)
        special = {"unk_token": unk_token, "bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
        super().__init__(
            errors=errors,
            add_prefix_space=add_prefix_space,
            add_bos_token=add_bos_token,
            **_as_added_tokens(special),
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens without those added."""
        return len(self.encoder)

    @property
    def bpe_ranks(self) -> dict[tuple[str, str], int]:
        """Merges, with the rank of each."""
        return self._bpe.ranks

    @property
    def pat(self) -> Any:
        """The pattern that splits a text into words."""
        return WORD_PATTERN

    def bpe(self, token: str) -> str:
        """Return the tokens of a word in the byte alphabet, joined by spaces."""
        return " ".join(self._bpe.merge([*token]))

    def get_vocab(self) -> dict[str, int]:
        """Token to id, with the added ones."""
        return self.encoder | self.added_tokens_encoder

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        """Put a space before a word, and before any text if `add_prefix_space` is true (the tokenizer's by default)."""
        prefix = kwargs.pop("add_prefix_space", self.add_prefix_space)
        return " " + text if prefix or is_split_into_words else text, kwargs

    def _tokenize(self, text: str) -> list[str]:
        return self._bpe.tokenize(text)

    def _convert_token_to_id(self, token: str) -> int | None:
        index = self.encoder.get(token)
        return self.encoder.get(self.unk_token or "") if index is None else index

    def _convert_id_to_token(self, index: int) -> str | None:
        return self.decoder.get(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens into text; the setting `errors` decides about bytes that are not UTF-8."""
        return from_alphabet("".join(tokens), self.errors)

    def build_inputs_with_special_tokens(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """Put the bos token before each text, if switched on."""
        bos = [self._required_bos_id()] if self.add_bos_token else []
        return bos + token_ids_0 + ([] if token_ids_1 is None else bos + token_ids_1)

    def create_token_type_ids_from_sequences(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """Return 0 for each token of the first text and 1 for each of the second, their bos tokens included."""
        bos = int(self.add_bos_token)
        return [0] * (bos + len(token_ids_0)) + ([] if token_ids_1 is None else [1] * (bos + len(token_ids_1)))

    def _required_bos_id(self) -> int:
        if self.bos_token_id is None:
            raise TokenizationError("add_bos_token=True, but the tokenizer has no bos_token; set one")
        return self.bos_token_id

    def get_special_tokens_mask(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Return 1 for special tokens and 0 for others in the result of `build_inputs_with_special_tokens`."""
        if already_has_special_tokens or not self.add_bos_token:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens)
        first = [1] + [0] * len(token_ids_0)
        return first if token_ids_1 is None else [*first, 1] + [0] * len(token_ids_1)

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write `vocab.json` and `merges.txt`; return their paths."""
        vocab_file, merges_file = (
            joined_path(save_directory, filename_prefix, name) for name in VOCAB_FILES_NAMES.values()
        )
        write_json(vocab_file, self.encoder)
        merges = sorted(self.bpe_ranks, key=self.bpe_ranks.__getitem__)
        write_text(merges_file, "\n".join(["#version: 0.2", *map(" ".join, merges), ""]))
        return vocab_file, merges_file


class GPT2TokenizerFast(PreTrainedTokenizerFast):
    """GPT-2's tokenizer over the `tokenizers` library: the same ids, plus offsets and words.

    Lists of words (`is_split_into_words`) need `add_prefix_space=True`.

    Args:
        vocab_file, merges_file: paths of a `vocab.json` and a `merges.txt`, read if there is no tokenizer_file.
        tokenizer_file: path of a `tokenizer.json`.
        unk_token, bos_token, eos_token: special tokens.
        add_prefix_space: put a space before the text, so that its first word is like any other.
        **kwargs: `add_bos_token` (with vocabulary files), and see `PreTrainedTokenizerFast`.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {**VOCAB_FILES_NAMES, "tokenizer_file": "tokenizer.json"}
    model_input_names = ("input_ids", "attention_mask")
    slow_tokenizer_class = GPT2Tokenizer

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        merges_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        unk_token: Token | None = _END_OF_TEXT,
        bos_token: Token | None = _END_OF_TEXT,
        eos_token: Token | None = _END_OF_TEXT,
        add_prefix_space: bool = False,
        **kwargs: Any,
    ) -> None:
        from_file = tokenizer_file is not None and not kwargs.get("from_slow")
        from_vocabulary = not from_file and kwargs.get("tokenizer_object") is None
        special = {"unk_token": unk_token, "bos_token": bos_token, "eos_token": eos_token}
        if from_vocabulary:  # with the same settings as the tokenizer in Python
            special["pad_token"] = kwargs.pop("pad_token", None)
            kwargs = {"errors": "replace", "add_bos_token": False, **kwargs, **_as_added_tokens(special)}
        else:
            kwargs |= special
        super().__init__(
            vocab_file=vocab_file,
            merges_file=merges_file,
            tokenizer_file=tokenizer_file,
            add_prefix_space=add_prefix_space,
            **kwargs,
        )
        self.add_bos_token = bool(kwargs.get("add_bos_token"))
        self._add_bos_to_template(from_vocabulary)

    def _add_bos_to_template(self, from_vocabulary: bool) -> None:
        """Put the bos token before a text (not before the second of a pair), in a backend that we built."""
        if not self.add_bos_token:
            return
        if from_vocabulary:
            put_before_texts(self._tokenizer, str(self.bos_token), cast(int, self.bos_token_id))
        elif self.num_special_tokens_to_add() == 0:
            self._warn_once(
                "bos",
                "add_bos_token=True has no effect: the tokenizer.json adds no bos token and takes precedence, as in "
                "Transformers. Load with from_slow=True, or use GPT2Tokenizer",
            )

    def _encode_many(self, samples: list[Sample], options: EncodeOptions) -> BatchEncoding:
        if options.is_split_into_words and not self.add_prefix_space:
            raise TokenizationError(
                f"{type(self).__name__} encodes lists of words only with add_prefix_space=True; load it with that"
            )
        return super()._encode_many(samples, options)
