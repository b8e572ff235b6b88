"""`score`: the log-probability, rank and likeliest alternatives of every token of given texts."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from operator import index as as_id
from typing import Any, Literal, SupportsIndex, overload

import torch
from torch import Tensor

from gptrio.errors import InputError, OptionError, counted
from gptrio.scoring.encoding import Encoded, Text, as_list, encode_texts
from gptrio.scoring.forward import (
    Predictions,
    Progress,
    Wanted,
    check_ids,
    check_model,
    context_length,
    predict,
    reported,
)
from gptrio.scoring.packing import Row
from gptrio.scoring.results import TextScore, TopToken

Start = int | Literal["auto"] | None


@overload
def score(
    model: Any,
    tokenizer: Any,
    texts: str,
    context: str | None = ...,
    top: int = ...,
    *,
    start: Start = ...,
    boundaries: bool = ...,
    batch_tokens: int | None = ...,
    share_prefixes: bool = ...,
    progress: Progress = ...,
) -> TextScore: ...


@overload
def score(
    model: Any,
    tokenizer: Any,
    texts: Sequence[Text],
    context: str | Sequence[Text] | None = ...,
    top: int = ...,
    *,
    start: Start = ...,
    boundaries: bool = ...,
    batch_tokens: int | None = ...,
    share_prefixes: bool = ...,
    progress: Progress = ...,
) -> list[TextScore]: ...


def score(
    model: Any,
    tokenizer: Any,
    texts: str | Sequence[Text],
    context: str | Sequence[Text] | None = None,
    top: int = 0,
    *,
    start: Start = "auto",
    boundaries: bool = False,
    batch_tokens: int | None = None,
    share_prefixes: bool = True,
    progress: Progress = None,
) -> TextScore | list[TextScore]:
    """Compute the log-probability of every token of texts, each token after all before it.

    Logits exist for some positions at a time only, never for a whole batch, and log-probabilities are computed in
    float32. Texts are batched by tokens; beginnings that texts share, such as a common context, are computed once.

    Args:
        model: a language model of this package.
        tokenizer: the model's.
        texts: a string; or several, each a string or a list of ids.
        context: what precedes the texts without being scored: one for all, or one for each.
        top: how many of the likeliest tokens to return for each position.
        start: a token that the model reads before everything. "auto" is the tokenizer's `bos_token_id`, or else its
            `eos_token_id`, for texts without a context, and nothing for the others; None is nothing.
        boundaries: also compute what `TextScore.words(corrected=True)` needs.
        batch_tokens: most tokens that are computed at once; 1,024 on a CPU and 8,192 elsewhere by default.
        share_prefixes: compute shared beginnings once.
        progress: called with the number of texts that are done and of all.

    Returns:
        A `TextScore` for a string, a list of them in the order of several texts.

    Raises:
        InputError: a text is empty or longer than the model's context, or arguments do not fit each other.
        OptionError: `top` is not a number from 0 to the vocabulary's size.
        TokenIdError: an id outside the vocabulary.

    Example:
        >>> result = gptrio.score(model, tokenizer, "def main():")
        >>> list(zip(result.tokens, result.log_probs))
    """
    several: list[Text] = [texts] if isinstance(texts, str) else as_list("texts", texts)
    names = ["the text"] if isinstance(texts, str) else [f"texts[{i}]" for i in range(len(several))]
    scores = score_named(
        model,
        tokenizer,
        several,
        contexts_of(several, context),
        names,
        top,
        start=start,
        boundaries=boundaries,
        batch_tokens=batch_tokens,
        share_prefixes=share_prefixes,
        progress=progress,
    )
    return scores[0] if isinstance(texts, str) else scores


def score_named(
    model: Any,
    tokenizer: Any,
    texts: Sequence[Text],
    contexts: Sequence[Text],
    names: Sequence[str],
    top: int = 0,
    *,
    start: Start = "auto",
    boundaries: bool = False,
    batch_tokens: int | None = None,
    share_prefixes: bool = True,
    progress: Progress = None,
) -> list[TextScore]:
    """`score` of texts after a context each, which errors call by the given names."""
    check_model(model)
    if not isinstance(top, SupportsIndex) or not 0 <= top <= model.config.vocab_size:
        raise OptionError(f"top={top!r} is impossible; expected 0 to {model.config.vocab_size}, the vocabulary's size")
    encoded = encode_texts(tokenizer, texts, contexts, names)
    end = [end_of_text(tokenizer)] if boundaries else []
    before = [[*start_ids(tokenizer, start, bool(one.context_ids)), *one.context_ids] for one in encoded]
    rows = [Row([*known, *one.ids, *end], max(len(known), 1)) for known, one in zip(before, encoded, strict=True)]
    for name, row in zip(names, rows, strict=True):
        check_ids(model, row.ids, name)
        _check_length(model, row, name)
    wanted = Wanted(ranks=True, top=top, mass_of=boundary_ids(tokenizer, model) if boundaries else None)
    predicted = sum(len(row.ids) > row.first for row in rows)
    found = dict(reported(predict(model, rows, wanted, batch_tokens, share_prefixes), predicted, progress))
    return [
        _result(tokenizer, one, found.get(i), wanted, is_first_skipped=not before[i]) for i, one in enumerate(encoded)
    ]


def _check_length(model: Any, row: Row, name: str) -> None:
    context, length = context_length(model), len(row.ids) - 1
    if length > context:
        raise InputError(
            f"{name} takes {length} tokens, but the model reads {context} at once; perplexity(stride=) scores longer "
            "texts, or split the text"
        )


def contexts_of(texts: Sequence[Text], context: str | Sequence[Text] | None) -> Sequence[Text]:
    """One context for each text; raises InputError if their number differs."""
    if context is None or isinstance(context, str):
        return [context or ""] * len(texts)
    context = as_list("context", context)
    if len(context) != len(texts):
        raise InputError(
            f"context is a list of {len(context)} for {counted(len(texts), 'text')}; give one for each, or a string"
        )
    return context


def start_ids(tokenizer: Any, start: Start, has_context: bool) -> list[int]:
    """The token before everything, as a list of one or none; see `score`.

    Raises:
        InputError: "auto", and the tokenizer has neither a bos nor an eos token; or neither "auto", None nor an id.
    """
    if start == "auto":
        return [] if has_context else [end_of_text(tokenizer)]
    try:
        return [] if start is None else [as_id(start)]
    except TypeError as error:
        raise InputError(f"start={start!r} is not known; expected 'auto', a token id, or None") from error


def end_of_text(tokenizer: Any) -> int:
    """The tokenizer's bos token, or else its eos token; raises InputError if it has neither."""
    for index in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if index is not None:
            return int(index)
    raise InputError(
        "the tokenizer has neither a bos nor an eos token to score a first token after; pass start= an id, or None"
    )


def boundary_ids(tokenizer: Any, model: Any) -> Tensor:
    """(M,) ids that the model has of tokens that begin with white space, and of the end of text."""
    ids = [index for index in _boundary_ids(tokenizer, len(tokenizer)) if index < model.config.vocab_size]
    return torch.tensor(ids, device=model.device)


@functools.lru_cache(maxsize=8)
def _boundary_ids(tokenizer: Any, size: int) -> list[int]:  # `size` keeps the cache from outliving added tokens
    whitespace = ("Ġ", "Ċ", "ĉ", "č", " ")  # space, newline, tab and return in the byte alphabet; added tokens' space
    found = {index for token, index in tokenizer.get_vocab().items() if token.startswith(whitespace)}
    return sorted(found | {end_of_text(tokenizer)})


def _result(
    tokenizer: Any, encoded: Encoded, found: Predictions | None, wanted: Wanted, is_first_skipped: bool
) -> TextScore:
    """The score of one text from its predictions, of which there are none for a single token with nothing before it."""
    none: list[Any] = [None] if is_first_skipped else []
    number = len(encoded.ids) - len(none)  # what boundaries predict after the last token is not part of the text
    log_probs, ranks = none, none
    top: list[list[TopToken]] = [[] for _ in none] if wanted.top else []
    mass: list[float | None] = []
    if found is not None:
        assert found.ranks is not None
        log_probs, ranks = none + found.log_probs[:number].tolist(), none + found.ranks[:number].tolist()
        top += _top_tokens(tokenizer, found, number)
        mass = [] if found.mass is None else none + found.mass.tolist()
    place = (encoded.offsets, encoded.byte_offsets)
    return TextScore(encoded.text, encoded.ids, encoded.tokens, *place, log_probs, ranks, top, mass)


def _top_tokens(tokenizer: Any, found: Predictions, number: int) -> Iterator[list[TopToken]]:
    """The likeliest tokens of each of the first `number` positions, if they are known."""
    if found.top_ids is None or found.top_log_probs is None:
        return
    for ids, values in zip(found.top_ids[:number].tolist(), found.top_log_probs[:number].tolist(), strict=True):
        yield [TopToken(*one) for one in zip(ids, tokenizer.convert_ids_to_tokens(ids), values, strict=True)]
