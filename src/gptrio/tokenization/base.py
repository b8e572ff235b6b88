"""The base of every tokenizer: its settings, decoding and files."""

from __future__ import annotations

import copy
import os
import sys
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from gptrio.errors import SettingNameError, TokenizationError, UnsupportedError
from gptrio.tokenization.chat_template import ChatTemplateMixin
from gptrio.tokenization.encoding import short
from gptrio.tokenization.files import load_tokenizer, save_tokenizer
from gptrio.tokenization.options import VERY_LARGE_INTEGER
from gptrio.tokenization.prepare import Ids, PrepareMixin
from gptrio.tokenization.settings import check_settings
from gptrio.tokenization.special_tokens import AddedToken
from gptrio.tokenization.tensors import to_plain
from gptrio.tokenization.vocabulary import ADDED_TOKENS_FILE, joined_path, write_json
from gptrio.uploads import Pushable, Upload

if TYPE_CHECKING:
    from typing_extensions import Self

_CLEAN_UP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
_MOST_SETTINGS = 1000  # entries; a longer table is a vocabulary


class PreTrainedTokenizerBase(ChatTemplateMixin, PrepareMixin, Pushable):
    """Base of the tokenizers in Python and of the fast ones.

    Args:
        model_max_length: most tokens the model takes.
        padding_side, truncation_side: "left" or "right".
        model_input_names: entries that a call returns by default.
        clean_up_tokenization_spaces: whether `decode` removes the space before punctuation by default.
        split_special_tokens: treat special tokens in the text as ordinary text.
        chat_template: a template for `apply_chat_template`, or several by name.
        extra_special_tokens: further special tokens, by attribute name.
        name_or_path: where it was loaded from.
        **kwargs: special tokens; anything else is stored for saving.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {}
    pretrained_vocab_files_map: ClassVar[dict[str, dict[str, str]]] = {}
    slow_tokenizer_class: ClassVar[type[PreTrainedTokenizerBase] | None] = None
    is_fast: ClassVar[bool] = False

    def __init__(self, **kwargs: Any) -> None:
        for name in kwargs:
            if callable(getattr(type(self), name, None)):
                raise SettingNameError(f"setting {name!r} has the name of a method of {type(self).__name__}; rename it")
        check_settings(kwargs)
        self.init_inputs: tuple[Any, ...] = ()  # positional arguments; there are none
        self.init_kwargs: dict[str, Any] = copy.deepcopy(kwargs)
        self.name_or_path: str = kwargs.pop("name_or_path", "")
        limit = kwargs.pop("model_max_length", kwargs.pop("max_len", None))
        self.model_max_length: int = VERY_LARGE_INTEGER if limit is None else int(limit)
        self.padding_side = kwargs.pop("padding_side", self.padding_side)
        self.truncation_side = kwargs.pop("truncation_side", self.truncation_side)
        self.model_input_names = list(kwargs.pop("model_input_names", self.model_input_names))
        self.clean_up_tokenization_spaces = bool(kwargs.pop("clean_up_tokenization_spaces", False))
        self.split_special_tokens = bool(kwargs.pop("split_special_tokens", False))
        template = kwargs.pop("chat_template", None)
        if isinstance(template, (list, tuple)):
            template = {item["name"]: item["template"] for item in template}
        self.chat_template: str | dict[str, str] | None = template
        self.extra_special_tokens: dict[str, Any] = kwargs.pop("extra_special_tokens", None) or {}
        self._warned: set[str] = set()
        super().__init__(**kwargs)
        self.SPECIAL_TOKENS_ATTRIBUTES = [*self.SPECIAL_TOKENS_ATTRIBUTES, *self.extra_special_tokens]
        self._special_tokens_map.update(self.extra_special_tokens)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or a pickle: the settings, without the warnings that were given."""
        state: dict[str, Any] = _interned({name: value for name, value in vars(self).items() if name != "_warned"})
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the settings; no warning counts as given."""
        vars(self).update(state, _warned=set())

    # What a subclass provides

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens without those added."""

    @property
    @abstractmethod
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Tokens that are never split, by id."""

    @abstractmethod
    def get_vocab(self) -> dict[str, int]:
        """Token to id, with the added ones."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of tokens, with the added ones."""

    @abstractmethod
    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """Split a text (or a pair) into tokens."""

    @abstractmethod
    def _token_to_id(self, token: str | None) -> int | None:
        """Id of a token, or of the unknown token; None if there is none."""

    @abstractmethod
    def _id_to_token(self, index: int) -> str | None:
        """Token of an id; None if there is none."""

    @abstractmethod
    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens into text."""

    @abstractmethod
    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write the vocabulary files and return their paths."""

    @abstractmethod
    def _decode(self, ids: Ids, skip_special_tokens: bool, spaces_between_special_tokens: bool) -> str:
        """Turn checked ids into text."""

    @abstractmethod
    def _save_vocabularies(
        self, folder: str, legacy_format: bool | None, filename_prefix: str | None
    ) -> tuple[str, ...]:
        """Write the files that hold the vocabulary and the added tokens; return their paths."""

    # Tokens and ids

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or the ids of several; those unknown get the unknown token's."""
        if tokens is None or isinstance(tokens, str):
            return self._token_to_id(tokens)
        return [self._token_to_id(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id (None if there is none), or the tokens of several."""
        ids = to_plain(ids)
        if isinstance(ids, int):
            return self._id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._id_to_token(int(index)) for index in ids if index not in skipped]

    # Decoding

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
        **kwargs: Any,
    ) -> str:
        """Turn ids into text.

        Args:
            token_ids: an id, a list of ids, or a tensor (T,).
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: remove the space before punctuation; the tokenizer's setting when None.
            spaces_between_special_tokens: put a space beside added tokens (tokenizers in Python only).
            **kwargs: ignored, as in Transformers.

        Raises:
            TokenizationError: an item is not an id.
        """
        ids = to_plain(token_ids)
        ids = [ids] if isinstance(ids, int) else ids
        for index in ids if isinstance(ids, list) else [ids]:
            if not isinstance(index, int) or not 0 <= index < 1 << 32:
                raise TokenizationError(
                    f"{short(index)} is not a token id; decode takes one text's ids, batch_decode several"
                )
        text = self._decode(ids, skip_special_tokens, spaces_between_special_tokens)
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return self.clean_up_tokenization(text) if clean else text

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> list[str]:
        """Turn ids (B, T) into texts (arguments as for `decode`)."""
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces, **options) for ids in sequences]

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """Remove the space before punctuation and contractions, which splitting into words has added."""
        for old, new in _CLEAN_UP:
            out_string = out_string.replace(old, new)
        return out_string

    # Files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a tokenizer from a folder, a packaged model or the hub.

        Args:
            pretrained_model_name_or_path: folder, "gptrio/stdlib-gpt2", or hub id.
            **kwargs: `HubOptions`, and settings that override those of the files.

        Raises:
            CheckpointNotFoundError: a needed file is missing.
            TokenizationError: a file is malformed.
        """
        return load_tokenizer(cls, pretrained_model_name_or_path, kwargs)

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
            legacy_format: True for vocabulary files only, False for `tokenizer.json` only, None for all that exist.
            filename_prefix: put before each file name, with a dash.
            push_to_hub: upload what is new in the folder, to `repo_id` (the folder's name by default).
            **kwargs: `save_jinja_files=False` keeps chat templates in the configuration; the rest as `push_to_hub`.

        Returns:
            Paths of the files.
        """
        jinja_files = kwargs.pop("save_jinja_files", True)
        upload = Upload.of_save(save_directory, kwargs) if push_to_hub else None
        paths = save_tokenizer(self, save_directory, legacy_format, filename_prefix, jinja_files)
        if upload is not None:
            upload.finish(self, **kwargs)
        return paths

    def _save_added_tokens(self, folder: str, filename_prefix: str | None) -> tuple[str, ...]:
        """Write the tokens that the vocabulary files lack, if there are any; return the path."""
        added = {text: index for text, index in self.added_tokens_encoder.items() if index >= self.vocab_size}
        if not added:
            return ()
        path = joined_path(folder, filename_prefix, ADDED_TOKENS_FILE)
        write_json(path, added)
        return (path,)

    # Others

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoTokenizer") -> None:
        """Refuse: this marks a class to be uploaded as code, which gptrio neither writes nor runs."""
        raise UnsupportedError(
            f"{cls.__name__} cannot be saved as code for {auto_class}; install its package where it is needed and call "
            "AutoTokenizer.register there"
        )

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Added token to id, by id."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """Added token to id."""
        return self.added_tokens_encoder

    def __repr__(self) -> str:
        added = "\n\t".join(f"{index}: {token!r}," for index, token in self.added_tokens_decoder.items())
        return (
            f"{type(self).__name__}(name_or_path='{self.name_or_path}', vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length}, is_fast={self.is_fast}, padding_side='{self.padding_side}', "
            f"truncation_side='{self.truncation_side}', special_tokens={self.special_tokens_map}, "
            f"clean_up_tokenization_spaces={self.clean_up_tokenization_spaces}, "
            f"added_tokens_decoder={{\n\t{added}\n}}\n)"
        )


def _interned(value: Any) -> Any:
    """Return settings in which equal strings are one object, which pickles depend on; long tables are unchanged."""
    if type(value) is str:
        return sys.intern(value)
    if type(value) not in (list, tuple, dict) or len(value) > _MOST_SETTINGS:
        return value
    if isinstance(value, dict):
        return {_interned(name): _interned(item) for name, item in value.items()}
    return type(value)(map(_interned, value))
