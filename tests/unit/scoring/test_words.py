"""Places of tokens in characters and bytes, and log-probabilities of words."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gptrio
from gptrio import GPT2Tokenizer, GPT2TokenizerFast, InputError, TokenizationError
from gptrio.scoring.encoding import encode_text
from gptrio.testing.tiny import byte_tokenizer
from tests.contract.families import FAMILIES
from tests.unit.generation.conftest import vocabulary_files as vocabulary_files

MODEL, BYTES = FAMILIES[0].build(), byte_tokenizer()


@given(st.text(min_size=1, max_size=30), st.text(max_size=10))
def test_tokens_cover_the_text_in_order(text, context):
    found = encode_text(BYTES, text, context)
    data = text.encode()
    assert b"".join(data[start:end] for start, end in found.byte_offsets) == data
    for (start, end), (byte_start, byte_end) in zip(found.offsets, found.byte_offsets, strict=True):
        assert len(text[:start].encode()) <= byte_start < byte_end <= len(text[:end].encode())


@pytest.mark.parametrize("kind", (GPT2Tokenizer, GPT2TokenizerFast))
def test_offsets_are_those_of_the_tokenizers_library(kind, vocabulary_files):
    text = "hello world, don't stop <|endoftext|> n"
    found = encode_text(kind(*vocabulary_files), text)
    oracle = GPT2TokenizerFast(*vocabulary_files)(text, return_offsets_mapping=True)
    assert found.ids == oracle["input_ids"]
    assert found.offsets == [tuple(span) for span in oracle["offset_mapping"]]


def test_a_token_that_begins_in_the_context_belongs_to_the_text(vocabulary_files):
    found = encode_text(GPT2TokenizerFast(*vocabulary_files), "world", "hello ")
    assert found.tokens == ["Ġworld"]
    assert found.offsets == [(0, 5)]


def test_a_prefix_space_is_not_part_of_the_text(vocabulary_files):
    found = encode_text(GPT2TokenizerFast(*vocabulary_files, add_prefix_space=True), "world hello")
    assert (found.tokens[0], found.offsets[0], found.byte_offsets[0]) == ("Ġworld", (0, 5), (0, 5))
    with pytest.raises(TokenizationError, match="class ending in Fast"):
        encode_text(GPT2Tokenizer(*vocabulary_files, add_prefix_space=True), "world")


def test_ids_that_are_no_text_have_places_too():
    found = encode_text(BYTES, [97, 0xC3, 98])
    ids = [BYTES.convert_tokens_to_ids(token) for token in ("a", "Ã", "b")]
    found = encode_text(BYTES, ids)
    assert (found.text, found.offsets) == ("a\ufffdb", [(0, 1), (1, 2), (2, 3)])


def test_words_sum_their_tokens():
    result = gptrio.score(MODEL, BYTES, " the  cat\n\nsat.")
    words = result.words()
    assert [(word.text, word.offsets) for word in words] == [("the", (1, 4)), ("cat", (6, 9)), ("sat.", (11, 15))]
    assert sum(word.log_prob for word in words) == pytest.approx(result.total)
    assert gptrio.score(MODEL, BYTES, "the cat", start=None).words()[0].log_prob is None


@torch.no_grad()
def test_corrected_words_move_the_probability_of_a_space_to_the_word_before_it():
    result = gptrio.score(MODEL, BYTES, "the cat", boundaries=True)
    logits = MODEL(torch.tensor([[256, *result.ids]])).logits[0].log_softmax(-1)
    space = [BYTES.convert_tokens_to_ids(token) for token in ("Ġ", "Ċ", "ĉ", "č")] + [256]
    mass = logits[:, space].logsumexp(-1)  # before each of the 7 tokens, and after the last
    assert result.boundary_log_probs == pytest.approx(mass.tolist(), abs=1e-5)
    first, second = result.words()
    corrected = [first.log_prob + mass[3].item(), second.log_prob - mass[3].item() + mass[7].item()]
    assert [word.log_prob for word in result.words(corrected=True)] == pytest.approx(corrected, abs=1e-5)


def test_corrected_words_need_boundaries():
    with pytest.raises(InputError, match="boundaries=True"):
        gptrio.score(MODEL, BYTES, "the cat").words(corrected=True)


def test_bits_per_byte_count_bytes_of_utf8():
    result = gptrio.score(MODEL, BYTES, "où", "x")
    assert result.num_bytes == 3
    assert result.bits_per_byte == pytest.approx(-result.total / torch.log(torch.tensor(2.0)).item() / 3)
