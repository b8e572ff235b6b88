"""`perplexity`: of a text of any length, by windows that overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

from gptrio.errors import InputError, OptionError
from gptrio.scoring.encoding import Text, encode_text
from gptrio.scoring.forward import Progress, Wanted, check_ids, check_model, context_length, predict, reported
from gptrio.scoring.packing import Row
from gptrio.scoring.score import Start, start_ids


class Perplexity(NamedTuple):
    """How well a model predicts a text; see `perplexity`.

    Attributes:
        perplexity: exp of the mean negative log-probability of a token.
        log_prob: sum of the natural logarithms.
        tokens: that were scored, each once.
        bytes: of these tokens in UTF-8.
        stride: tokens from one window to the next.
        context: most tokens of a window.
    """

    perplexity: float
    log_prob: float
    tokens: int
    bytes: int
    stride: int
    context: int

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte, which does not depend on the tokenizer."""
        return -self.log_prob / math.log(2) / self.bytes


def perplexity(
    model: Any,
    tokenizer: Any,
    text: Text,
    stride: int | None = None,
    *,
    start: Start = "auto",
    batch_tokens: int | None = None,
    progress: Progress = None,
) -> Perplexity:
    """Compute the perplexity of a text of any length.

    The model reads windows of its context's length, each beginning `stride` tokens after the one before it, and every
    token is scored once: in the first window that has it. A smaller stride gives every token a longer past, and a lower
    perplexity, for more computation; results compare only at the same stride.

    Args:
        model: a language model of this package.
        tokenizer: the model's.
        text: a string, or a list of ids.
        stride: tokens from one window to the next, at most the context's length; half of it by default.
        start: the token before the text; see `score`.
        batch_tokens: most tokens that are computed at once; 1,024 on a CPU and 8,192 elsewhere by default.
        progress: called with the number of windows that are done and of all.

    Raises:
        InputError: the text has no token to score.
        OptionError: the stride is impossible.
        TokenIdError: an id outside the vocabulary.
    """
    check_model(model)
    context = context_length(model)
    stride = max(context // 2, 1) if stride is None else stride
    if not isinstance(stride, SupportsIndex) or not 1 <= stride <= context:
        raise OptionError(f"stride={stride!r} is impossible; expected 1 to {context}, the model's context")
    encoded = encode_text(tokenizer, text)
    first = start_ids(tokenizer, start, has_context=False)
    ids = [*first, *encoded.ids]
    if len(ids) < 2:
        raise InputError(
            "the text is a single token, which has nothing before it to be predicted from; keep start='auto'"
        )
    check_ids(model, ids, "the text")
    rows = windows(ids, context, stride)
    found = predict(model, rows, Wanted(), batch_tokens, share=False)
    parts = [part.log_probs.tolist() for _, part in reported(found, len(rows), progress)]
    total = math.fsum(value for part in parts for value in part)
    scored = encoded.byte_offsets if first else encoded.byte_offsets[1:]
    count, size = len(scored), sum(end - begin for begin, end in scored)
    return Perplexity(math.exp(-total / count), total, count, size, stride, context)


def windows(ids: Sequence[int], context: int, stride: int) -> list[Row]:
    """Rows of at most `context` ids to read, `stride` apart, which predict each id but the first exactly once."""
    rows, done = [], 1  # ids that are predicted so far, or need not be
    for start in range(0, len(ids), stride):
        end = min(start + context + 1, len(ids))
        rows.append(Row(ids[start:end], done - start))
        done = end
        if end == len(ids):
            break
    return rows
