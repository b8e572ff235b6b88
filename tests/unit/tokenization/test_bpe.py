"""The BPE in Python against the obvious slow version, and what it makes of bad files."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptrio import CheckpointNotFoundError, GPT2Tokenizer, TokenizationError
from gptrio.tokenization.bpe import ByteLevelBPE, byte_alphabet, from_alphabet, to_alphabet


def merge_one_pair_at_a_time(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Look for the best pair in the whole word, merge it where it stands first, start over."""
    ranks, symbols = {pair: i for i, pair in enumerate(merges)}, list(word)
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]
        if not found:
            return symbols
        _, i = min(found)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


def test_alphabet_is_printable_and_one_to_one():
    alphabet = byte_alphabet()
    assert sorted(alphabet) == list(range(256)) and len(set(alphabet.values())) == 256
    assert all(char.isprintable() and not char.isspace() for char in alphabet.values())
    assert (alphabet[ord("A")], alphabet[ord(" ")], alphabet[ord("\n")], alphabet[0]) == ("A", "Ġ", "Ċ", "Ā")


@given(st.text())
def test_alphabet_round_trip(text):
    assert from_alphabet(to_alphabet(text), "strict") == text


@st.composite
def merges_and_word(draw):
    """Merges as training makes them (each of tokens that exist already), and a word."""
    tokens, merges = list("abc"), []
    for _ in range(draw(st.integers(0, 12))):
        pair = (draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens)))
        if pair not in merges and "".join(pair) not in tokens:
            merges.append(pair)
            tokens.append("".join(pair))
    return merges, draw(st.text("abc", min_size=1, max_size=40))


@given(merges_and_word())
def test_heap_merges_as_the_obvious_version(case):
    merges, word = case
    assert ByteLevelBPE({}, merges).tokenize(word) == merge_one_pair_at_a_time(word, merges)


def test_a_very_long_word_takes_no_quadratic_time(slow):
    start = time.perf_counter()
    ids = slow.encode("ab" * 100_000)
    assert time.perf_counter() - start < 5 and slow.decode(ids) == "ab" * 100_000


def test_words_are_cut_as_gpt2_cuts_them():
    words = ByteLevelBPE({}, [("a", "b")])
    joined = "|".join(words.tokenize("ab 12"))
    assert joined == "ab|Ġ|1|2"


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        ("[1]", "a b\n", "holds a list; expected a JSON object"),
        ('{"a": -1}', "a b\n", "non-negative"),
        ('{"a": true}', "a b\n", "non-negative"),
        ('{"a": 1, "b": 1}', "a b\n", "share one id"),
        ('{"a": 1', "a b\n", "not valid JSON"),
        ('{"a": 1}', "#version: 0.2\na b c\n", "merge 0 is 'a b c'"),
    ],
)
def test_malformed_vocabularies_are_named(tmp_path, vocab, merges, message):
    (tmp_path / "vocab.json").write_text(vocab)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(TokenizationError, match=message):
        GPT2Tokenizer.from_pretrained(tmp_path)


def test_binary_merges_are_refused(tmp_path, gpt2_folder):
    (tmp_path / "vocab.json").write_text((gpt2_folder / "vocab.json").read_text())
    (tmp_path / "merges.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(TokenizationError, match="not UTF-8"):
        GPT2Tokenizer.from_pretrained(tmp_path)


def test_merges_may_lack_version_line_and_last_newline(tmp_path, gpt2_folder, slow):
    (tmp_path / "vocab.json").write_text((gpt2_folder / "vocab.json").read_text())
    lines = (gpt2_folder / "merges.txt").read_text().split("\n")
    (tmp_path / "merges.txt").write_text("\n".join(lines[1:-1]))
    assert GPT2Tokenizer.from_pretrained(tmp_path).bpe_ranks == slow.bpe_ranks


def test_missing_vocabulary_names_the_files(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r"vocab\.json, merges\.txt"):
        GPT2Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="vocab_file=None"):
        GPT2Tokenizer()


def test_slow_reads_a_tokenizer_json(tmp_path, fast, slow):
    fast.save_pretrained(tmp_path, legacy_format=False)
    assert not (tmp_path / "vocab.json").exists()
    alone = GPT2Tokenizer.from_pretrained(tmp_path)
    assert alone("The quick <|endoftext|>") == slow("The quick <|endoftext|>")


def test_slow_refuses_a_tokenizer_json_that_it_would_get_wrong(neox_folder):
    with pytest.raises(TokenizationError, match="not plain byte-level BPE"):
        GPT2Tokenizer.from_pretrained(neox_folder)


def test_unknown_token_needs_an_unk_token(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    none = GPT2Tokenizer.from_pretrained(tmp_path, unk_token=None, bos_token=None, eos_token=None)
    assert none.encode("aa") == [0, 0] and none.convert_tokens_to_ids("b") is None
    with pytest.raises(TokenizationError, match="token 'b' is not in the vocabulary"):
        none.encode("ab")


def test_bytes_that_are_no_text_follow_errors(gpt2_folder):
    for errors, expected in (("replace", "\ufffd"), ("ignore", "")):
        tokenizer = GPT2Tokenizer.from_pretrained(gpt2_folder, errors=errors)
        assert tokenizer.decode(tokenizer.convert_tokens_to_ids(byte_alphabet()[0xC3])) == expected
    strict = GPT2Tokenizer.from_pretrained(gpt2_folder, errors="strict")
    with pytest.raises(TokenizationError, match="not valid UTF-8"):
        strict.decode([strict.convert_tokens_to_ids(byte_alphabet()[0xC3])])
    with pytest.raises(TokenizationError, match="stands for no byte"):
        strict.convert_tokens_to_string(["a b"])
