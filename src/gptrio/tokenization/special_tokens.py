"""Special tokens of a tokenizer: their attributes (`bos_token`, `bos_token_id`, ...), lists and registration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from tokenizers import AddedToken as AddedToken

from gptrio.errors import TextTypeError, TokenizationError

Token: TypeAlias = str | AddedToken

_ATTRIBUTES = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
]


class _SpecialToken:
    """Attribute `<name>_token`: the token's text, None while unset. Setting it does not add it to the vocabulary."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, tokenizer: SpecialTokensMixin, owner: type | None = None) -> str | None:
        if tokenizer is None:
            raise AttributeError(f"{self.name} belongs to a tokenizer, not to its class")
        token = tokenizer._special_tokens_map[self.name]
        return None if token is None else str(token)

    def __set__(self, tokenizer: SpecialTokensMixin, token: Token | None) -> None:
        if token is not None and not isinstance(token, Token):
            raise TokenizationError(f"{self.name} is {token!r}; expected a string, an AddedToken or None")
        tokenizer._special_tokens_map[self.name] = token


class _SpecialTokenId:
    """Attribute `<name>_token_id`: the token's id, None while unset."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.token_name = name.removesuffix("_id")

    def __get__(self, tokenizer: SpecialTokensMixin, owner: type | None = None) -> int | None:
        token: str | None = getattr(tokenizer, self.token_name)
        return None if token is None else tokenizer.convert_tokens_to_ids(token)

    def __set__(self, tokenizer: SpecialTokensMixin, index: int | None) -> None:
        setattr(tokenizer, self.token_name, None if index is None else tokenizer.convert_ids_to_tokens(index))


class SpecialTokensMixin(ABC):
    """Keeps the special tokens; the tokenizer classes build on it.

    Args:
        verbose: stored for callers that read it.
        **kwargs: special tokens by attribute name; other names are ignored.
    """

    SPECIAL_TOKENS_ATTRIBUTES = _ATTRIBUTES
    bos_token, bos_token_id = _SpecialToken(), _SpecialTokenId()
    eos_token, eos_token_id = _SpecialToken(), _SpecialTokenId()
    unk_token, unk_token_id = _SpecialToken(), _SpecialTokenId()
    sep_token, sep_token_id = _SpecialToken(), _SpecialTokenId()
    pad_token, pad_token_id = _SpecialToken(), _SpecialTokenId()
    cls_token, cls_token_id = _SpecialToken(), _SpecialTokenId()
    mask_token, mask_token_id = _SpecialToken(), _SpecialTokenId()
    pad_token_type_id = 0

    def __init__(self, verbose: bool = False, **kwargs: Any) -> None:
        self.verbose = verbose
        self._special_tokens_map: dict[str, Any] = dict.fromkeys(self.SPECIAL_TOKENS_ATTRIBUTES)
        self._special_tokens_map["additional_special_tokens"] = []
        for name in self.SPECIAL_TOKENS_ATTRIBUTES:
            if kwargs.get(name) is not None:
                setattr(self, name, kwargs[name])

    @abstractmethod
    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or the ids of several."""

    @abstractmethod
    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or the tokens of several."""

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            """Special tokens of one model (`extra_special_tokens`), and their ids."""
            tokens = self.__dict__.get("_special_tokens_map", {})
            if name in tokens:
                return str(tokens[name])
            if name.removesuffix("_id") in tokens:
                return self.convert_tokens_to_ids(str(tokens[name.removesuffix("_id")]))
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def additional_special_tokens(self) -> list[str] | None:
        """Special tokens without a separate attribute; None if they were set to None."""
        tokens = self._special_tokens_map["additional_special_tokens"]
        return None if tokens is None else [str(token) for token in tokens]

    @additional_special_tokens.setter
    def additional_special_tokens(self, tokens: Sequence[Token] | None) -> None:
        self._special_tokens_map["additional_special_tokens"] = (
            None if tokens is None else check_tokens(tokens, "additional_special_tokens")
        )

    @property
    def additional_special_tokens_ids(self) -> list[int] | None:
        """Ids of `additional_special_tokens`."""
        tokens = self.additional_special_tokens
        return None if tokens is None else [self.convert_tokens_to_ids(token) for token in tokens]

    @additional_special_tokens_ids.setter
    def additional_special_tokens_ids(self, ids: Sequence[int] | None) -> None:
        self.additional_special_tokens = None if ids is None else self.convert_ids_to_tokens(list(ids))

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """Attribute name to text (a list of texts for the additional ones), without those unset."""
        return {
            name: [str(token) for token in value] if isinstance(value, list) else str(value)
            for name, value in self.special_tokens_map_extended.items()
        }

    @property
    def special_tokens_map_extended(self) -> dict[str, Any]:
        """As `special_tokens_map`, with `AddedToken` objects where they were given."""
        return {name: value for name in self.SPECIAL_TOKENS_ATTRIBUTES if (value := self._special_tokens_map[name])}

    @property
    def all_special_tokens_extended(self) -> list[Token]:
        """Every special token once, in the order of the attributes."""
        tokens: dict[str, Token] = {}
        for value in self.special_tokens_map_extended.values():
            for token in value if isinstance(value, list) else [value]:
                tokens.setdefault(str(token), token)
        return list(tokens.values())

    @property
    def all_special_tokens(self) -> list[str]:
        """Text of every special token."""
        return [str(token) for token in self.all_special_tokens_extended]

    @property
    def all_special_ids(self) -> list[int]:
        """Id of every special token."""
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    def sanitize_special_tokens(self) -> int:
        """Add the special tokens that the vocabulary lacks; return how many these were."""
        return self.add_tokens(self.all_special_tokens_extended, special_tokens=True)

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_additional_special_tokens: bool = True
    ) -> int:
        """Set special tokens and add those that the vocabulary lacks.

        Args:
            special_tokens_dict: attribute name to token, or to a list for "additional_special_tokens".
            replace_additional_special_tokens: replace the list of additional ones instead of extending it.

        Returns:
            How many tokens are new; the model's embedding has to grow by as many (`resize_token_embeddings`).
        """
        added: list[Token] = []
        for name, value in special_tokens_dict.items():
            if name not in self.SPECIAL_TOKENS_ATTRIBUTES:
                known = ", ".join(self.SPECIAL_TOKENS_ATTRIBUTES)
                raise TokenizationError(f"{name!r} is not a special token; expected one of {known}")
            if name == "additional_special_tokens":
                added += self._set_additional(check_tokens(value, name), replace_additional_special_tokens)
                continue
            [token] = map(_as_special, check_tokens([value], name))
            self._special_tokens_map[name] = token
            if token not in added:
                added.append(token)
        return self.add_tokens(added, special_tokens=True)

    def _set_additional(self, tokens: Sequence[Token], replace: bool) -> list[Token]:
        known = self.additional_special_tokens or []
        new = [token for token in map(_as_special, tokens) if replace or str(token) not in known]
        if replace and new:
            self._special_tokens_map["additional_special_tokens"] = [*new]
        elif not replace:
            before = self._special_tokens_map["additional_special_tokens"] or []
            self._special_tokens_map["additional_special_tokens"] = [*before, *new]
        return new

    def add_tokens(self, new_tokens: Token | Sequence[Token], special_tokens: bool = False) -> int:
        """Add tokens that are never split, at the end of the vocabulary.

        Args:
            new_tokens: one token or several; an `AddedToken` has rules for matching.
            special_tokens: register them as special, so that `skip_special_tokens` leaves them out.

        Returns:
            How many of them the vocabulary lacked.
        """
        if not new_tokens:
            return 0
        several = [new_tokens] if isinstance(new_tokens, Token) else list(new_tokens)
        return self._add_tokens(check_tokens(several, "new_tokens"), special_tokens)

    @abstractmethod
    def _add_tokens(self, new_tokens: list[Token], special_tokens: bool) -> int:
        """Add checked tokens; return how many the vocabulary lacked."""


def check_tokens(tokens: Any, name: str) -> list[Token]:
    """Return `tokens` as a list if all of them are tokens.

    Raises:
        TextTypeError: they are not a list or tuple of strings and `AddedToken`s.
    """
    if not isinstance(tokens, (list, tuple)) or not all(isinstance(token, Token) for token in tokens):
        raise TextTypeError(f"{name} is {tokens!r}; expected strings or AddedToken objects")
    return list(tokens)


def _as_special(token: Token) -> AddedToken:
    return AddedToken(token, normalized=False, special=True) if isinstance(token, str) else token
