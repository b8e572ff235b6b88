"""Tokenizers against Transformers: the same calls give the same entries, the same texts and the same tokens."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import gptrio
from tests.tiny_tokenizers import TEXTS, write_gpt2, write_gpt_neox

CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "GPTNeoXTokenizerFast")
ADDED: list[tuple[str, dict[str, Any]]] = [
    ("[NEW]", {}),
    ("<L>", {"lstrip": True, "rstrip": True}),
    ("<W>", {"single_word": True}),
    ("<N>", {"normalized": False, "special": True}),
]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"pad_token": "<|endoftext|>", "add_prefix_space": True},
    {"pad_token": "[PAD]", "add_prefix_space": True, "padding_side": "left"},
    {"pad_token": "[PAD]", "add_bos_token": True, "truncation_side": "left"},
    {"pad_token": "<|endoftext|>", "model_max_length": 7, "clean_up_tokenization_spaces": True},
]
OPTIONS: dict[str, tuple[list[Any], float]] = {
    "add_special_tokens": ([True, False], 0.3),
    "padding": ([True, False, "longest", "max_length", "do_not_pad"], 0.5),
    "truncation": ([True, False, "longest_first", "only_first", "only_second", "do_not_truncate"], 0.5),
    "max_length": ([1, 2, 3, 4, 5, 8, 12, 40], 0.5),
    "stride": ([0, 1], 0.3),
    "pad_to_multiple_of": ([4, 8], 0.15),
    "padding_side": (["left", "right"], 0.2),
    "return_tensors": (["np", "pt"], 0.2),
    "return_token_type_ids": ([True, False], 0.3),
    "return_attention_mask": ([True, False], 0.3),
    "return_overflowing_tokens": ([True], 0.3),
    "return_special_tokens_mask": ([True], 0.3),
    "return_offsets_mapping": ([True], 0.15),
    "return_length": ([True], 0.2),
    "is_split_into_words": ([True], 0.25),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    gpt2 = write_gpt2(tmp_path_factory.mktemp("gpt2"))
    return dict(zip(CLASSES, (gpt2, gpt2, write_gpt_neox(tmp_path_factory.mktemp("neox"))), strict=True))


def both(folders: dict[str, Path], name: str, **kwargs: Any) -> tuple[Any, Any]:
    """Our tokenizer and theirs, with the same added tokens."""
    made = []
    for library in (gptrio, transformers):
        tokenizer = getattr(library, name).from_pretrained(folders[name], **kwargs)
        for token, rules in ADDED:
            tokenizer.add_tokens([library.AddedToken(token, **rules)])
        made.append(tokenizer)
    return made[0], made[1]


def result(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a call returns as plain lists with the kind of tensor, or "error"; warnings are not compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return plain(call(*arguments, **options))
        except (ValueError, TypeError, AssertionError, NotImplementedError, OverflowError):
            return "error"
        except BaseException as error:  # the backend's plain Exception, and its panic at an impossible stride
            assert "Truncation error" in str(error) or "stride" in str(error), error
            return "error"


def plain(value: Any) -> Any:
    if hasattr(value, "items"):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return type(value).__name__, str(value.dtype), plain(value.tolist())
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def random_call(rng: random.Random) -> tuple[Any, Any, dict[str, Any]]:
    options = {name: rng.choice(values) for name, (values, share) in OPTIONS.items() if rng.random() < share}
    size = rng.choice([0, 0, 1, 2, 3])

    def text() -> Any:
        chosen = rng.choice(TEXTS)
        return chosen.split(" ") if options.get("is_split_into_words") else chosen

    def some() -> Any:
        return [text() for _ in range(size)] if size else text()

    return some(), some() if rng.random() < 0.4 else None, options


def is_better_than_theirs(tokenizer: Any, first: Any, second: Any, options: dict[str, Any]) -> bool:
    """Calls of their tokenizer in Python that fail, return lists of different lengths or do not pad."""
    no_limit = options.get("return_overflowing_tokens") and "max_length" not in options
    types_without_bos = options.get("return_token_type_ids") and tokenizer.add_bos_token
    unpadded = first == "" and not second and options.get("padding", False) is not False
    return not tokenizer.is_fast and bool(no_limit or types_without_bos or unpadded)


@pytest.mark.parametrize("kwargs", SETTINGS, ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_calls(folders, name, kwargs):
    ours, theirs = both(folders, name, **kwargs)
    rng = random.Random(name + str(kwargs))
    compared = 0
    for _ in range(250):
        first, second, options = random_call(rng)
        if is_better_than_theirs(ours, first, second, options):
            continue
        expected = result(theirs, first, second, **options)
        assert result(ours, first, second, **options) == expected, (first, second, options)
        compared += expected != "error"
    assert compared > 60


@pytest.mark.parametrize("kwargs", SETTINGS, ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_state(folders, name, kwargs):
    ours, theirs = both(folders, name, **kwargs)
    for attribute in (
        "vocab_size",
        "special_tokens_map",
        "all_special_tokens",
        "all_special_ids",
        "additional_special_tokens_ids",
        "pad_token_id",
        "pad_token_type_id",
        "model_max_length",
        "max_len_single_sentence",
        "max_len_sentences_pair",
        "padding_side",
        "truncation_side",
        "model_input_names",
        "added_tokens_encoder",
        "is_fast",
    ):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert ours.get_vocab() == theirs.get_vocab() and ours.get_added_vocab() == theirs.get_added_vocab()
    assert len(ours) == len(theirs)
    for pair in (False, True):
        assert ours.num_special_tokens_to_add(pair) == theirs.num_special_tokens_to_add(pair)


@pytest.mark.parametrize("clean", [None, True, False])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_decoding(folders, name, skip, clean):
    ours, theirs = both(folders, name, pad_token="[PAD]")
    rng = random.Random(0)
    options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
    rows = [[rng.randrange(len(ours)) for _ in range(rng.randrange(9))] for _ in range(60)]
    rows += [[rng.randrange(len(ours) - 8, len(ours)) for _ in range(3)] for _ in range(40)]
    assert ours.batch_decode(rows, **options) == theirs.batch_decode(rows, **options)
    for row in rows:
        assert ours.convert_ids_to_tokens(row, skip) == theirs.convert_ids_to_tokens(row, skip)
        spaced = {**options, "spaces_between_special_tokens": False}
        assert ours.decode(row, **spaced) == theirs.decode(row, **spaced)


@pytest.mark.parametrize("name", CLASSES)
def test_tokens(folders, name):
    ours, theirs = both(folders, name)
    for text in TEXTS:
        tokens = theirs.tokenize(text)
        assert ours.tokenize(text) == tokens
        assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
        assert ours.tokenize(text, split_special_tokens=True) == theirs.tokenize(text, split_special_tokens=True)
    plain_tokens = theirs.tokenize("Hello, it's 生活")
    assert ours.convert_tokens_to_string(plain_tokens) == theirs.convert_tokens_to_string(plain_tokens)
    assert ours.convert_tokens_to_ids("no such token") == theirs.convert_tokens_to_ids("no such token")


@pytest.mark.parametrize("name", CLASSES)
def test_pad(folders, name):
    ours, theirs = both(folders, name, pad_token="[PAD]")
    rows = [theirs(text, return_special_tokens_mask=True) for text in TEXTS[:6] if text]
    for options in (
        {"padding": True},
        {"padding": "max_length", "max_length": 24, "padding_side": "left"},
        {"padding": "longest", "pad_to_multiple_of": 8, "return_tensors": "np"},
        {"padding": False},
        {"padding": True, "return_attention_mask": False},
    ):
        assert result(ours.pad, rows, **options) == result(theirs.pad, rows, **options)
    single = {"input_ids": [5, 6, 7]}
    for length in (2, 3, 8):
        arguments = {"padding": "max_length", "max_length": length}
        assert plain(ours.pad(dict(single), **arguments)) == plain(theirs.pad(dict(single), **arguments))


@pytest.mark.parametrize("name", CLASSES)
def test_prepare_for_model_and_truncate_sequences(folders, name):
    ours, theirs = both(folders, name, pad_token="[PAD]")
    first, second = list(range(10, 17)), list(range(20, 25))
    for strategy in ("longest_first", "only_first", "only_second"):
        for pair in (None, second):
            for count in range(5):
                arguments = (first, pair, count, strategy, 1)
                assert ours.truncate_sequences(*arguments) == tuple(theirs.truncate_sequences(*arguments))
            if strategy == "only_second" and pair is None:
                continue
            options = {"truncation": strategy, "max_length": 9, "padding": "max_length"}
            expected = plain(theirs.prepare_for_model(first, pair, **options))
            assert plain(ours.prepare_for_model(first, pair, **options)) == expected


@pytest.mark.parametrize("name", CLASSES[1:])
def test_words_and_characters(folders, name):
    ours, theirs = both(folders, name)
    text = "Hello wörld [NEW] 生活"
    mine, other = ours(text, "second one"), theirs(text, "second one")
    assert (mine.tokens(), mine.word_ids(), mine.sequence_ids()) == (
        other.tokens(),
        other.word_ids(),
        other.sequence_ids(),
    )
    for i in range(len(mine.input_ids)):
        for method in ("token_to_chars", "token_to_word", "token_to_sequence", "word_to_tokens"):
            assert getattr(mine, method)(i) == getattr(other, method)(i), (method, i)
    for i in range(len(text)):
        for method in ("char_to_token", "char_to_word"):
            assert getattr(mine, method)(i) == getattr(other, method)(i), (method, i)


TEXT = st.lists(
    st.one_of(st.sampled_from([" ", "\n", "<|endoftext|>", "[NEW]", "<W>", "é", "'s"]), st.text(max_size=5))
)


CACHE: dict[str, tuple[Any, Any]] = {}


@settings(max_examples=60)
@given(texts=st.lists(TEXT.map("".join), min_size=1, max_size=3))
def test_any_text(folders, texts):
    for name in CLASSES:
        if name not in CACHE:
            CACHE[name] = both(folders, name, pad_token="[PAD]")
        ours, theirs = CACHE[name]
        batch = ours(texts, padding=True)
        assert plain(batch) == plain(theirs(texts, padding=True))
        assert ours.batch_decode(batch["input_ids"]) == theirs.batch_decode(batch["input_ids"])
