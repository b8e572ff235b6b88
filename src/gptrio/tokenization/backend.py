"""Building tokenizers of the `tokenizers` library: from files, from a vocabulary, from another one."""

from __future__ import annotations

import copy
import json
import os
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import ByteLevel as ByteLevelProcessor
from tokenizers.processors import TemplateProcessing

from gptrio.errors import TokenizationError
from gptrio.tokenization.bpe import Pair
from gptrio.tokenization.vocabulary import read_model


def byte_level_backend(vocab: dict[str, int], merges: list[Pair]) -> Tokenizer:
    """Build GPT-2's tokenizer of the `tokenizers` library from its vocabulary."""
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.post_processor = ByteLevelProcessor(trim_offsets=False)
    return tokenizer


def put_before_texts(tokenizer: Tokenizer, token: str, token_id: int) -> None:
    """Let a backend put a token before a text, but not before the second of a pair."""
    tokenizer.post_processor = TemplateProcessing(
        single=f"{token}:0 $A:0", pair=f"{token}:0 $A:0 $B:1", special_tokens=[(token, token_id)]
    )


def build_backend(kwargs: dict[str, Any]) -> Tokenizer:
    """Build a tokenizer from `tokenizer_object`, `tokenizer_file` (both are removed) or vocabulary files."""
    given: Tokenizer | None = kwargs.pop("tokenizer_object", None)
    path, from_slow = kwargs.pop("tokenizer_file", None), kwargs.pop("from_slow", False)
    if given is not None:
        return copy.deepcopy(given)
    try:
        if path is not None and not from_slow:
            return Tokenizer.from_file(os.fspath(path))
        return byte_level_backend(*read_model(kwargs.get("vocab_file"), kwargs.get("merges_file")))
    except TokenizationError:
        raise
    except BaseException as error:  # for malformed files the library raises plain Exception, or panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizationError(f"cannot build a tokenizer from {path or kwargs.get('vocab_file')}: {error}") from error


_SETTINGS = {"direction": "truncation_side", "strategy": "truncation_strategy", "pad_type_id": "pad_token_type_id"}


def take_backend_settings(tokenizer: Tokenizer, kwargs: dict[str, Any]) -> None:
    """Use the truncation and padding that a backend stores as defaults of the settings `kwargs`."""
    truncation, padding = tokenizer.truncation or {}, tokenizer.padding or {}
    found = {_SETTINGS.get(name, name): value for name, value in truncation.items()}
    for name, value in padding.items():
        found.setdefault({**_SETTINGS, "direction": "padding_side", "length": "max_length"}.get(name, name), value)
    found.pop("pad_id", None)
    for name, value in found.items():
        kwargs.setdefault(name, value)


def set_lengths(tokenizer: Tokenizer, truncation: dict[str, Any] | None, padding: dict[str, Any] | None) -> None:
    """Set how a backend truncates and pads; it keeps both as state. None switches them off."""
    if truncation is not None:
        tokenizer.enable_truncation(**truncation)
    elif tokenizer.truncation is not None:
        tokenizer.no_truncation()
    if padding is not None:
        tokenizer.enable_padding(**padding)
    elif tokenizer.padding is not None:
        tokenizer.no_padding()


def set_prefix_space(tokenizer: Tokenizer, add_prefix_space: bool) -> None:
    """Make a byte-level pre-tokenizer add the space, or not; no effect on other kinds."""
    if isinstance(tokenizer.pre_tokenizer, ByteLevel):
        state = json.loads(tokenizer.pre_tokenizer.__getstate__())
        tokenizer.pre_tokenizer = ByteLevel(
            add_prefix_space, trim_offsets=state["trim_offsets"], use_regex=state["use_regex"]
        )
