"""Streamers: the pieces join to the decoded text, each character comes whole and as early as it can."""

import asyncio
import queue
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptrio import (
    AsyncTextIteratorStreamer,
    BatchTextIteratorStreamer,
    BatchTextStreamer,
    InputError,
    TextIteratorStreamer,
    TextStreamer,
)

TEXT = "hello world — 你好, мир! 👋🏽 naïve\ncafé \t don't stop"


class Pieces(TextStreamer):
    """Collects what it is handed, one entry for each call."""

    def __init__(self, tokenizer, skip_prompt=False, **decode_kwargs):
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.pieces = []

    def on_finalized_text(self, text, stream_end=False):
        self.pieces.append(text)


def stream(streamer, ids):
    for token in ids:
        streamer.put(torch.tensor([token]))
    streamer.end()


def test_pieces_join_to_the_text(tokenizer):
    streamer = Pieces(tokenizer)
    stream(streamer, tokenizer.encode(TEXT))
    assert "".join(streamer.pieces) == TEXT
    assert not any("\ufffd" in piece for piece in streamer.pieces)


def test_each_character_comes_with_its_last_byte(tokenizer):
    streamer, seen = Pieces(tokenizer), []
    for token in tokenizer.encode("a你b"):
        streamer.put(torch.tensor([token]))
        seen.append("".join(streamer.pieces))
    assert seen == ["a", "a", "a", "a你", "a你b"]


def test_words_do_not_wait_for_the_next_one(tokenizer):
    streamer = Pieces(tokenizer)
    streamer.put(torch.tensor(tokenizer.encode("hello world")))
    assert streamer.pieces == ["hello world"]


@given(data=st.binary(max_size=200))
def test_any_bytes_stream_to_what_they_decode_to(tokenizer, byte_ids, data):
    ids = [byte_ids[byte] for byte in data]
    streamer = Pieces(tokenizer)
    stream(streamer, ids)
    assert "".join(streamer.pieces) == tokenizer.decode(ids) == data.decode("utf-8", errors="replace")


@given(text=st.text(alphabet=" .,?!'ntsmvedo\n", max_size=150))
def test_cleaned_up_spaces_stream_to_what_they_decode_to(tokenizer, text):
    ids = tokenizer.encode(text)
    streamer = Pieces(tokenizer, clean_up_tokenization_spaces=True)
    stream(streamer, ids)
    assert "".join(streamer.pieces) == tokenizer.decode(ids, clean_up_tokenization_spaces=True)


def test_only_the_last_tokens_are_decoded(tokenizer):
    lengths = []

    class Watched:
        def decode(self, ids, **kwargs):
            lengths.append(len(ids))
            return tokenizer.decode(ids, **kwargs)

    ids = tokenizer.encode(TEXT * 20)
    streamer = Pieces(Watched())
    stream(streamer, ids)
    assert "".join(streamer.pieces) == TEXT * 20
    assert max(lengths) < 60 < len(ids)


def test_prompt_is_skipped_for_every_call(tokenizer):
    streamer = Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)
    for _ in range(2):
        streamer.put(torch.tensor([tokenizer.encode("hello")]))
        stream(streamer, [*tokenizer.encode(" world"), tokenizer.eos_token_id])
    assert [piece for piece in streamer.pieces if piece] == [" world", " world"]


def test_printed_text_ends_with_a_line_break(tokenizer, capsys):
    streamer = TextStreamer(tokenizer)
    stream(streamer, tokenizer.encode("hello 你"))
    assert capsys.readouterr().out == "hello 你\n"


def test_several_rows_are_refused_with_the_way_out(tokenizer):
    with pytest.raises(InputError, match="got 2; use BatchTextStreamer"):
        TextStreamer(tokenizer).put(torch.zeros(2, 3, dtype=torch.long))


def test_iterator_in_another_thread(tokenizer):
    streamer = TextIteratorStreamer(tokenizer, timeout=10)
    thread = threading.Thread(target=stream, args=(streamer, tokenizer.encode(TEXT)))
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == TEXT
    assert "" not in pieces


def test_iterator_gives_up_after_its_timeout(tokenizer):
    with pytest.raises(queue.Empty):
        next(TextIteratorStreamer(tokenizer, timeout=0.01))


def test_async_iterator(tokenizer):
    async def collect():
        streamer = AsyncTextIteratorStreamer(tokenizer, timeout=10)
        threading.Thread(target=stream, args=(streamer, tokenizer.encode(TEXT))).start()
        return [piece async for piece in streamer]

    assert "".join(asyncio.run(collect())) == TEXT


def test_async_iterator_gives_up_after_its_timeout(tokenizer):
    async def wait():
        await AsyncTextIteratorStreamer(tokenizer, timeout=0.01).__anext__()

    with pytest.raises(TimeoutError, match="no text came within"):
        asyncio.run(wait())


def put_rows(streamer, tokenizer, prompt, texts):
    """Stream texts of different lengths as one padded batch, telling of each row's end."""
    rows = [tokenizer.encode(text) for text in texts]
    pad = tokenizer.eos_token_id
    streamer.put(torch.tensor([tokenizer.encode(prompt)] * len(rows)))
    for step in range(max(map(len, rows))):
        streamer.put(torch.tensor([row[step] if step < len(row) else pad for row in rows]))
        for index, row in enumerate(rows):
            if step == len(row) - 1:
                streamer.end_row(index)
    streamer.end()


def test_rows_stream_side_by_side(tokenizer):
    streamer = BatchTextIteratorStreamer(tokenizer, skip_prompt=True, timeout=10)
    texts = ["hello world", "你好", "don't"]
    put_rows(streamer, tokenizer, "st", texts)
    joined = ["", "", ""]
    order = []
    for row, piece in streamer:
        joined[row] += piece
        order.append(row)
    assert joined == texts
    assert order.index(2) < order.index(1)  # the second row's first character takes three tokens


def test_rows_print_one_below_the_other(tokenizer, capsys):
    texts = ["stop stop stop", "a", "hello 👋"]
    put_rows(BatchTextStreamer(tokenizer), tokenizer, "st", texts)
    assert capsys.readouterr().out == "".join(f"st{text}\n" for text in texts)


def test_first_row_prints_at_once(tokenizer, capsys):
    streamer = BatchTextStreamer(tokenizer, skip_prompt=True)
    streamer.put(torch.zeros(2, 3, dtype=torch.long))
    streamer.put(torch.tensor([tokenizer.encode("a")[0], tokenizer.encode("b")[0]]))
    assert capsys.readouterr().out == "a"
    streamer.end_row(0)
    assert capsys.readouterr().out == "\nb"
    streamer.put(torch.tensor([tokenizer.eos_token_id, tokenizer.encode("c")[0]]))
    streamer.end()
    assert capsys.readouterr().out == "c\n"


@pytest.mark.parametrize(("first", "then"), [((3,), None), ((2, 3), (3,))])
def test_rows_of_other_shapes_are_refused(tokenizer, first, then):
    streamer = BatchTextStreamer(tokenizer, skip_prompt=True)
    with pytest.raises(InputError, match="shape"):
        streamer.put(torch.zeros(first, dtype=torch.long))
        streamer.put(torch.zeros(then, dtype=torch.long))
