"""Texts as ids, and where each token lies in its text, in characters and in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import index as as_id
from reprlib import repr as shortened
from typing import Any, NamedTuple

from gptrio.errors import InputError, TokenizationError
from gptrio.tokenization.bpe import byte_alphabet

Text = str | Sequence[int]
Span = tuple[int, int]


class Encoded(NamedTuple):
    """One text after its context.

    Attributes:
        text: as given; decoded if ids were given.
        context_ids: tokens before those of the text.
        ids: tokens of the text; the first one may begin in the context, if a token covers the end of both.
        tokens: as the vocabulary spells them.
        offsets: (start, end) of each token in the text, in characters.
        byte_offsets: the same in bytes of UTF-8.
    """

    text: str
    context_ids: list[int]
    ids: list[int]
    tokens: list[str]
    offsets: list[Span]
    byte_offsets: list[Span]


def encode_texts(
    tokenizer: Any, texts: Sequence[Text], contexts: Sequence[Text], names: Sequence[str]
) -> list[Encoded]:
    """Encode each text together with its context, so that the tokens are those of running text.

    Args:
        tokenizer: a tokenizer of byte-level BPE.
        texts: strings, or lists of ids.
        contexts: what precedes each; "" or [] for nothing. Ids precede ids, strings precede strings.
        names: what errors call each text.

    Raises:
        InputError: a text is empty, of another kind than its context, or neither a string nor ids; no tokenizer.
        TokenizationError: the tokenizer changes the text, and does not tell where its tokens lie.
    """
    if not hasattr(tokenizer, "added_tokens_decoder"):
        raise InputError(f"tokenizer is {shortened(tokenizer)}; expected the model's tokenizer, as AutoTokenizer loads")
    texts = [_text(name, text) for name, text in zip(names, texts, strict=True)]
    contexts = [_text(f"the context of {name}", context) for name, context in zip(names, contexts, strict=True)]
    for name, text, context in zip(names, texts, contexts, strict=True):
        if not text:
            raise InputError(f"{name} is empty; there is nothing to score, so leave it out")
        if context and isinstance(text, str) != isinstance(context, str):
            raise InputError(f"{name} and its context are a string and a list of ids; give both in one form")
    pairs = list(zip(texts, contexts, strict=True))
    strings = [str(context or "") + text for text, context in pairs if isinstance(text, str)]
    rows = iter(tokenizer(strings, add_special_tokens=False, verbose=False)["input_ids"] if strings else ())
    spelling = _Spelling(tokenizer)
    return [
        _locate(spelling, text, str(context or ""), next(rows))
        if isinstance(text, str)
        else _decode(spelling, list(text), [] if isinstance(context, str) else list(context))
        for text, context in pairs
    ]


def encode_text(tokenizer: Any, text: Text, context: Text = "") -> Encoded:
    """`encode_texts` of one text."""
    return encode_texts(tokenizer, [text], [context], ["the text"])[0]


def as_list(name: str, values: Any) -> list[Any]:
    """Several texts or ids of any sequence as a list; raises InputError, with the argument's name, for another type."""
    if isinstance(values, str | bytes | dict) or not hasattr(values, "__iter__"):
        raise InputError(f"{name} is {shortened(values)}; expected a list")
    return list(values)


def _text(name: str, value: Any) -> str | list[int]:
    """A string as it is, ids as integers; raises InputError for anything else."""
    if isinstance(value, str):
        return value
    try:
        return [as_id(one) for one in as_list(name, value)]
    except (InputError, TypeError) as error:
        raise InputError(f"{name} is {shortened(value)}; expected a string, or a list of ids") from error


class _Spelling:
    """Tokens of a tokenizer, and the bytes that they stand for."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
        self._byte_of = {char: bytes([byte]) for byte, char in byte_alphabet().items()}

    def tokens(self, ids: list[int]) -> list[str]:
        return [token or "" for token in self.tokenizer.convert_ids_to_tokens(ids)]

    def bytes_of(self, index: int, token: str) -> bytes:
        if index in self._added:
            return str(self._added[index]).encode()
        return b"".join(self._byte_of.get(char) or char.encode() for char in token)

    def spans(self, ids: list[int], tokens: list[str]) -> tuple[bytes, list[Span]]:
        """The bytes that tokens stand for, and which of them are whose."""
        known = {index: self.bytes_of(index, token) for index, token in dict(zip(ids, tokens, strict=True)).items()}
        parts = [known[index] for index in ids]
        return b"".join(parts), list(pairwise(accumulate(map(len, parts), initial=0)))


def _locate(spelling: _Spelling, text: str, context: str, ids: list[int]) -> Encoded:
    """Find the tokens of a text among those of context and text, and their places."""
    whole = context + text
    tokens = spelling.tokens(ids)
    content, byte_spans = spelling.spans(ids, tokens)
    if content == whole.encode():
        spans = _in_characters(whole, byte_spans)
    else:  # the tokenizer normalises, or puts a space before the text
        spans = _offsets_of_tokenizer(spelling.tokenizer, whole, ids)
        starts = list(accumulate((len(char.encode()) for char in whole), initial=0))
        byte_spans = [(starts[start], starts[end]) for start, end in spans]
    border, byte_border = len(context), len(context.encode())
    first = next((i for i, (_, end) in enumerate(byte_spans) if end > byte_border), len(ids))
    return Encoded(
        text,
        ids[:first],
        ids[first:],
        tokens[first:],
        _shifted(spans[first:], border),
        _shifted(byte_spans[first:], byte_border),
    )


def _decode(spelling: _Spelling, ids: list[int], context_ids: list[int]) -> Encoded:
    """The text of given ids; bytes that are not UTF-8 are one character each."""
    tokens = spelling.tokens(ids)
    content, byte_spans = spelling.spans(ids, tokens)
    text = content.decode("utf-8", "surrogateescape")
    spans = _in_characters(text, byte_spans)
    shown = "".join("\ufffd" if "\udc80" <= char <= "\udcff" else char for char in text)
    return Encoded(shown, context_ids, ids, tokens, spans, byte_spans)


def _in_characters(text: str, byte_spans: list[Span]) -> list[Span]:
    """Spans in characters of spans in bytes; tokens that share a character both cover it."""
    if text.isascii():
        return byte_spans
    char_of = [i for i, char in enumerate(text) for _ in char.encode("utf-8", "surrogateescape")] + [len(text)]
    return [(char_of[start], char_of[end - 1] + 1 if end > start else char_of[start]) for start, end in byte_spans]


def _offsets_of_tokenizer(tokenizer: Any, text: str, ids: list[int]) -> list[Span]:
    if not tokenizer.is_fast:
        raise TokenizationError(
            f"{type(tokenizer).__name__} changes the text (add_prefix_space or the like), so that the places of its "
            "tokens are unknown; use the class ending in Fast"
        )
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    assert found["input_ids"] == ids
    return [tuple(span) for span in found["offset_mapping"]]


def _shifted(spans: list[Span], border: int) -> list[Span]:
    return [(max(start - border, 0), max(end - border, 0)) for start, end in spans]
