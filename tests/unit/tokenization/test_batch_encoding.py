"""The way back from tokens to words and characters, and moving of tensors."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from gptrio import BatchEncoding, CharSpan, TokenizationError, TokenSpan


@pytest.fixture
def batch(fast) -> BatchEncoding:
    return fast(["a b", "Hello 12"], return_offsets_mapping=True)


def test_words_and_characters(fast, batch):
    assert batch.is_fast and batch.n_sequences == 1
    assert batch.tokens(0) == ["a", "Ġb"] and batch.word_ids(0) == [0, 1] and batch.sequence_ids(0) == [0, 0]
    assert batch.token_to_chars(0, 1) == CharSpan(1, 3) and batch.token_to_chars(1) == CharSpan(1, 3)
    assert batch.char_to_token(0) == 0 and batch.char_to_token(0, 2) == 1 and batch.char_to_token(99) is None
    assert batch.word_to_tokens(0, 1) == TokenSpan(1, 2) and batch.word_to_tokens(7) is None
    assert batch.word_to_chars(1) == CharSpan(1, 3) and batch.word_to_chars(7) is None
    assert batch.char_to_word(0, 2) == 1 and batch.token_to_word(0, -1) == 1
    assert batch.token_to_sequence(0) == 0 and batch[0].ids == batch["input_ids"][0]
    with pytest.raises(TokenizationError, match="no row 5 in a batch of 2"):
        batch.tokens(5)


def test_pairs(fast):
    pair = fast("a b", "c")
    assert pair.n_sequences == 2 and pair.sequence_ids() == [0, 0, 1]
    assert pair.char_to_token(0, sequence_index=1) == 2 and pair.token_to_sequence(2) == 1
    assert pair.word_to_tokens(0, sequence_index=1) == TokenSpan(2, 3)


def test_slow_rows_by_name_and_slice(slow):
    batch = slow(["a", "b", "c"])
    assert not batch.is_fast and batch.encodings is None and batch.n_sequences is None
    assert batch[1:]["input_ids"] == batch["input_ids"][1:]
    with pytest.raises(KeyError, match="need a fast tokenizer"):
        batch[0]
    with pytest.raises(KeyError):
        batch["labels"]


def test_to_moves_tensors_and_leaves_the_rest(fast):
    batch = fast("a", return_tensors="pt")
    batch["note"] = "kept"
    assert batch.to("meta") is batch
    assert batch["input_ids"].device == torch.device("meta") and batch["note"] == "kept"


def test_copies_and_pickles(batch):
    for other in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert other.data == batch.data and other.tokens(1) == batch.tokens(1) and other.n_sequences == 1


def test_tokenizers_copy_and_pickle(tokenizer):
    tokenizer.add_tokens(["<new>"])
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other("a<new>").data == tokenizer("a<new>").data


def test_tensors_from_lists():
    one = BatchEncoding({"input_ids": [1, 2]}, tensor_type="pt", prepend_batch_axis=True)
    assert one["input_ids"].tolist() == [[1, 2]]
    assert one.convert_to_tensors("pt")["input_ids"] is one["input_ids"]
    assert BatchEncoding({"x": one["input_ids"].numpy()}, tensor_type="pt")["x"].tolist() == [[1, 2]]
