"""Trains a fast tokenizer with a new vocabulary; its other parts are those of an existing one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tokenizers import AddedToken, Tokenizer, trainers
from tokenizers.pre_tokenizers import ByteLevel

from gptrio.errors import TokenizationError
from gptrio.tokenization.special_tokens import Token

if TYPE_CHECKING:
    from gptrio.tokenization.fast import PreTrainedTokenizerFast

Fast = TypeVar("Fast", bound="PreTrainedTokenizerFast")
Names = Mapping[str, str]

_TRAINERS: dict[str, Any] = {
    "BPE": trainers.BpeTrainer,
    "Unigram": trainers.UnigramTrainer,
    "WordLevel": trainers.WordLevelTrainer,
    "WordPiece": trainers.WordPieceTrainer,
}


def train_new(
    tokenizer: Fast,
    texts: Iterable[Any],
    vocab_size: int,
    length: int | None,
    new_tokens: Sequence[Token],
    renamed: Names,
    options: dict[str, Any],
) -> Fast:
    """Train a tokenizer like `tokenizer`; see `PreTrainedTokenizerFast.train_new_from_iterator`."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    added, processor = state.pop("added_tokens"), state.pop("post_processor")  # both contain ids of the old vocabulary
    state["truncation"] = state["padding"] = None
    model = state["model"]
    kind = model["type"]
    if kind not in _TRAINERS:
        raise TokenizationError(f"cannot train a tokenizer of model {kind!r}; expected one of {', '.join(_TRAINERS)}")
    unknown = _empty(model, renamed)
    special = [_renamed(token, renamed) for token in added if token["special"] or kind == "Unigram"]
    trainer = _TRAINERS[kind](
        vocab_size=vocab_size,
        special_tokens=[*special, *new_tokens],
        **{**_trainer_options(model, state["pre_tokenizer"], unknown), **options},
    )
    backend = Tokenizer.from_str(json.dumps(state))
    backend.train_from_iterator(texts, trainer=trainer, length=length)
    if processor is not None:
        _renumber(processor, backend, renamed)
        backend = Tokenizer.from_str(json.dumps({**json.loads(backend.to_str()), "post_processor": processor}))
    return type(tokenizer)(tokenizer_object=backend, **_settings(tokenizer, new_tokens, renamed))


def _empty(model: dict[str, Any], renamed: Names) -> str | None:
    """Remove the vocabulary from a model's state; return the unknown token of a unigram model."""
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if model["type"] != "Unigram":
        model["vocab"] = {}
        if model["type"] == "BPE":
            model["merges"] = []
        return None
    if model["unk_id"] is None:
        return None
    token = str(model["vocab"][model["unk_id"]][0])
    token = renamed.get(token, token)
    model["unk_id"], model["vocab"] = 0, [[token, 0.0]]
    return token


def _renamed(token: dict[str, Any], renamed: Names) -> AddedToken:
    rules = {name: value for name, value in token.items() if name not in ("id", "special")}
    return AddedToken(**{**rules, "content": renamed.get(token["content"], token["content"])})


def _trainer_options(model: dict[str, Any], splitter: dict[str, Any] | None, unknown: str | None) -> dict[str, Any]:
    """Return the trainer's arguments that follow from the model and its pre-tokenizer."""
    names = ("continuing_subword_prefix", "end_of_word_suffix") if model["type"] == "BPE" else ()
    options = {name: model[name] for name in names if model[name] is not None}
    if unknown is not None:
        options["unk_token"] = unknown
    steps = (splitter or {}).get("pretokenizers", [splitter or {}])
    if any(step.get("type") == "ByteLevel" for step in steps):
        options["initial_alphabet"] = ByteLevel.alphabet()
    return options


def _renumber(processor: dict[str, Any], backend: Tokenizer, renamed: Names) -> None:
    """Replace names and ids of the special tokens that are added to a text by the new ones."""

    def number(token: str) -> int:
        index = backend.token_to_id(token)
        if index is None:
            raise TokenizationError(
                f"{token!r} is added around texts but is not in the new vocabulary; add it to new_special_tokens"
            )
        return int(index)

    for entry in processor.get("special_tokens", {}).values():
        entry["tokens"] = [renamed.get(token, token) for token in entry["tokens"]]
        entry["ids"] = [number(token) for token in entry["tokens"]]
    for name in ("cls", "sep"):
        if name in processor:
            token = renamed.get(processor[name][0], processor[name][0])
            processor[name] = [token, number(token)]


def _settings(tokenizer: Fast, new_tokens: Sequence[Token], renamed: Names) -> dict[str, Any]:
    """Arguments of the new tokenizer: those of the old one, its special tokens renamed."""
    settings = dict(tokenizer.init_kwargs)
    for name, token in tokenizer.special_tokens_map_extended.items():
        if name == "additional_special_tokens":
            continue
        text = renamed.get(str(token), str(token))
        if isinstance(token, AddedToken):
            rules = {rule: getattr(token, rule) for rule in ("single_word", "lstrip", "rstrip", "normalized")}
            settings[name] = AddedToken(text, **rules, special=True)
        else:
            settings[name] = text
    additional = [*(tokenizer.additional_special_tokens or []), *new_tokens]
    return {**settings, "additional_special_tokens": additional} if additional else settings
