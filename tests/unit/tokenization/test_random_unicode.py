"""Any text: decode gives it back, slow and fast agree, offsets cover it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptrio import GPT2Tokenizer, GPT2TokenizerFast, GPTNeoXTokenizerFast, TokenizationError
from tests.tiny_tokenizers import is_nfc, write_gpt2, write_gpt_neox

PIECES = st.sampled_from(
    [" ", "  ", "\n", "\t", "'s", "'LL", "12", "a", "é", "e\u0301", "生活", "😊", "\u200d", "\x1f", "\u0085"]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=12).map("".join)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory):
    gpt2 = write_gpt2(tmp_path_factory.mktemp("gpt2"))
    neox = write_gpt_neox(tmp_path_factory.mktemp("neox"))
    load = (cls.from_pretrained(folder) for cls, folder in ((GPT2Tokenizer, gpt2), (GPT2TokenizerFast, gpt2)))
    return (*load, GPTNeoXTokenizerFast.from_pretrained(neox))


@given(text=TEXTS)
def test_decode_gives_the_text_back(three, text):
    slow, fast, neox = three
    assert slow.decode(slow.encode(text)) == text
    assert fast.decode(fast.encode(text)) == text
    if is_nfc(text):
        assert neox.decode(neox.encode(text)) == text


@given(text=TEXTS)
def test_slow_equals_fast(three, text):
    slow, fast, _ = three
    assert slow.tokenize(text) == fast.tokenize(text)
    assert slow(text).data == fast(text).data


@given(text=TEXTS)
def test_offsets_slice_the_text(three, text):
    _, fast, _ = three
    batch = fast(text, return_offsets_mapping=True)
    spans = batch["offset_mapping"]
    assert {i for start, end in spans for i in range(start, end)} == set(range(len(text)))
    for index, (start, end) in zip(batch["input_ids"], spans, strict=True):
        piece = fast.decode([index])
        if "\ufffd" not in piece:
            assert text[start:end] == piece


@given(ids=st.lists(st.integers(0, 499), max_size=20))
def test_any_ids_decode_alike(three, ids):
    slow, fast, _ = three
    assert slow.decode(ids) == fast.decode(ids)


@given(before=st.text(max_size=3), after=st.text(max_size=3), surrogate=st.characters(categories=["Cs"]))
def test_lone_surrogates_are_refused_with_their_place(three, before, after, surrogate):
    for tokenizer in three:
        for call in (tokenizer.encode, lambda text, t=tokenizer: t(["fine", text])):
            with pytest.raises(TokenizationError, match=f"lone surrogate .* at character {len(before)}"):
                call(before + surrogate + after)
