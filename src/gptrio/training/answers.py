"""Answers to questions from the logits of a model, over all rows of a context, and their scores."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptrio.errors import OptionError
from gptrio.tokenization.batch_encoding import BatchEncoding
from gptrio.training.files import shown

Span = tuple[int, int]
LONGEST = 128  # tokens of an answer


@dataclass(frozen=True)
class Piece:
    """The part of a context that one row has.

    Attributes:
        example: number of the example.
        offsets: (T,) the place of each token in the context; None for tokens outside of it.
    """

    example: int
    offsets: Sequence[Span | None]


def pieces_of(encoded: BatchEncoding) -> list[Piece]:
    """The pieces of pairs of a question and a context, encoded with offsets and `return_overflowing_tokens=True`."""
    pieces = []
    for row, example in enumerate(encoded["overflow_to_sample_mapping"]):
        sides = zip(encoded["offset_mapping"][row], encoded.sequence_ids(row), strict=True)
        pieces.append(Piece(example, [tuple(offset) if side == 1 else None for offset, side in sides]))
    return pieces


def check_answers(answers: Any, context: str) -> None:
    """Check the answers to a question.

    Args:
        answers: `text` and `answer_start`, lists as in SQuAD; both are empty where the context has no answer.
        context: where they stand.

    Raises:
        OptionError: they are something else, or one reaches beyond the context.
    """
    given = answers if isinstance(answers, dict) else {}
    columns = [given.get(name) for name in ("text", "answer_start")]
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns}
    if -1 in lengths or len(lengths) > 1:
        raise OptionError(
            f"answers is {shown(answers)}; expected lists 'text' and 'answer_start' of one length, or a list of "
            "objects with both"
        )
    for text, start in zip(given["text"], given["answer_start"], strict=True):
        if not (isinstance(text, str) and text and isinstance(start, int)):
            raise OptionError(f"an answer is {shown(text)} at {shown(start)}; expected a text and a whole number")
        if not 0 <= start <= len(context) - len(text):
            raise OptionError(
                f"answer {shown(text)} at character {start} is not within the context of {len(context)} characters"
            )


def answer_tokens(answers: Any, piece: Piece) -> Span:
    """First and last token of the first answer; (0, 0) if there is none, or it is not whole in this piece.

    Args:
        answers: `text` and `answer_start`, lists as in SQuAD.
        piece: where the answer is looked for.
    """
    if not answers["answer_start"]:
        return 0, 0
    first = answers["answer_start"][0]
    last = first + len(answers["text"][0])
    places = [(token, *place) for token, place in enumerate(piece.offsets) if place is not None]
    if not places or places[0][1] > first or places[-1][2] < last:
        return 0, 0
    start = min(token for token, _, end in places if end > first)  # the tokens of one character share its place
    end = max(token for token, begin, _ in places if begin < last)
    return start, end


def best_answers(
    pieces: Sequence[Piece], starts: NDArray[Any], ends: NDArray[Any], contexts: Sequence[str], may_be_none: bool
) -> list[str]:
    """The likeliest answer to each question, as the script of Transformers for SQuAD chooses it.

    The logits of the first and of the last token are added. Of all spans in all rows of a context the highest sum wins;
    with `may_be_none`, only over the logits of position 0, where a row without the answer points, in every row.

    Args:
        pieces: of the rows.
        starts, ends: (rows, T) logits of the first and last token of an answer; columns past a row's tokens count not.
        contexts: of the examples.
        may_be_none: whether a question may have no answer; it is "" then.
    """
    best: list[tuple[float, str]] = [(-np.inf, "")] * len(contexts)
    none = np.full(len(contexts), np.inf)
    for piece, start, end in zip(pieces, starts, ends, strict=True):
        none[piece.example] = min(none[piece.example], start[0] + end[0])
        score, span = _best_span(piece, start, end)
        if score > best[piece.example][0]:
            best[piece.example] = score, contexts[piece.example][slice(*span)]
    return ["" if may_be_none and no >= score else text for (score, text), no in zip(best, none, strict=True)]


def _best_span(piece: Piece, start: NDArray[Any], end: NDArray[Any]) -> tuple[float, Span]:
    """The highest sum of logits of a span of the context, and its place there; (-inf, nothing) without any context."""
    places = [(token, place) for token, place in enumerate(piece.offsets) if place is not None]
    if not places:
        return -np.inf, (0, 0)
    inside = np.array([token for token, _ in places])
    sums = start[inside, None].astype(np.float64) + end[None, inside]
    is_span = np.triu(np.ones_like(sums, bool)) & np.tril(np.ones_like(sums, bool), LONGEST - 1)
    first, last = np.unravel_index(np.where(is_span, sums, -np.inf).argmax(), sums.shape)
    return float(sums[first, last]), (places[first][1][0], places[last][1][1])


def mean_scores(guesses: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Means of exact match and F1 over questions; "" is the right answer to one that has none."""
    scores = [answer_scores(guess, texts or [""]) for guess, texts in zip(guesses, answers, strict=True)]
    return {name: sum(score[i] for score in scores) / len(scores) for i, name in enumerate(("exact_match", "f1"))}


def answer_scores(guess: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match (0 or 1) and F1 of words with the best of the right answers, as SQuAD's own script counts."""
    scores = []
    for answer in answers:
        one, other = _words(guess), _words(answer)
        common = sum((Counter(one) & Counter(other)).values())
        f1 = 2 * common / (len(one) + len(other)) if one and other else float(one == other)
        scores.append((float(one == other), f1))
    return max(exact for exact, _ in scores), max(f1 for _, f1 in scores)


def _words(text: str) -> list[str]:
    """Lower-case words of an answer without punctuation and articles."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()
