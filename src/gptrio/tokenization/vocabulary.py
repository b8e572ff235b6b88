"""Vocabulary files: `vocab.json`, `merges.txt` and the model part of `tokenizer.json`, checked while they are read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from gptrio.errors import CheckpointNotFoundError, TokenizationError
from gptrio.hub import read_json, write_text
from gptrio.tokenization.bpe import Pair

PathLike = str | os.PathLike[str]

TOKENIZER_FILE = "tokenizer.json"
ADDED_TOKENS_FILE = "added_tokens.json"


def read_vocab(path: PathLike) -> dict[str, int]:
    """Read a `vocab.json`: an object of token to id."""
    return _check_vocab(read_object(path), path)


def _check_vocab(vocab: Any, path: PathLike) -> dict[str, int]:
    if not isinstance(vocab, dict) or not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise TokenizationError(f"{path}: expected a JSON object of tokens to non-negative integer ids")
    if len(set(vocab.values())) != len(vocab):
        raise TokenizationError(f"{path}: two tokens share one id")
    return vocab


def read_merges(path: PathLike) -> list[Pair]:
    """Read a `merges.txt`: an optional version line, then one pair a line."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().split("\n")
    except UnicodeDecodeError as error:
        raise TokenizationError(f"{path} is not UTF-8 text: {error}") from error
    first = 1 if lines[0].startswith("#version") else 0
    return _parse_merges(filter(str.strip, lines[first:]), path)


def _parse_merges(lines: Iterable[Any], path: PathLike) -> list[Pair]:
    merges: list[Pair] = []
    for line in lines:
        try:
            first, second = line.split() if isinstance(line, str) else line
        except (TypeError, ValueError) as error:
            raise TokenizationError(f"{path}: merge {len(merges)} is {line!r}; expected two tokens") from error
        merges.append((first, second))
    return merges


def read_object(path: PathLike | None) -> dict[str, Any]:
    """The JSON object in a file; empty if the path is None. Raises TokenizationError."""
    return {} if path is None else read_json(path, TokenizationError)


def read_byte_level_model(path: PathLike) -> tuple[dict[str, int], list[Pair]]:
    """Return vocabulary and merges of a `tokenizer.json`, for the tokenizer in Python.

    Raises:
        TokenizationError: it is not plain byte-level BPE, so that the tokenizer in Python would give other ids.
    """
    data = read_object(path)
    model, splitter = data.get("model") or {}, data.get("pre_tokenizer") or {}
    plain = (
        model.get("type", "BPE") == "BPE" and splitter.get("type") == "ByteLevel" and splitter.get("use_regex", True)
    )
    if not plain or data.get("normalizer") is not None:
        raise TokenizationError(
            f"{path} is not plain byte-level BPE (model {model.get('type')}, pre-tokenizer {splitter.get('type')}, "
            f"normalizer {data.get('normalizer')}); load it with PreTrainedTokenizerFast or the family's fast tokenizer"
        )
    return _check_vocab(model.get("vocab"), path), _parse_merges(model.get("merges", []), path)


def read_model(
    vocab_file: PathLike | None, merges_file: PathLike | None, tokenizer_file: PathLike | None = None
) -> tuple[dict[str, int], list[Pair]]:
    """Read vocabulary and merges from their two files, or else from a `tokenizer.json`.

    Raises:
        CheckpointNotFoundError: neither exists.
        TokenizationError: a file is malformed.
    """
    if vocab_file is not None and merges_file is not None:
        return read_vocab(vocab_file), read_merges(merges_file)
    if tokenizer_file is not None:
        return read_byte_level_model(tokenizer_file)
    raise CheckpointNotFoundError(
        f"no vocabulary: expected vocab.json and merges.txt, or tokenizer.json (vocab_file={vocab_file}, "
        f"merges_file={merges_file})"
    )


def joined_path(folder: PathLike, filename_prefix: str | None, name: str) -> str:
    """Path of a file in a folder, with an optional prefix and a dash before its name."""
    return os.path.join(folder, f"{filename_prefix}-{name}" if filename_prefix else name)


def write_json(path: PathLike, data: Any) -> None:
    """Write JSON as the other tokenizer files are written: indented, sorted, not escaped."""
    write_text(path, json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
