"""The answer that logits choose, over all rows of a context, is the one that a plain search finds."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from gptrio import GPT2TokenizerFast
from gptrio.training import answers
from gptrio.training.answers import Piece, best_answers
from gptrio.training.tasks import QuestionAnswering

CONTEXT = "The key is blue, the door is red, and nobody knows why. " * 4


@pytest.fixture(scope="module")
def tokenizer() -> GPT2TokenizerFast:
    return GPT2TokenizerFast.from_pretrained("gptrio/stdlib-gpt2")


def slowly(pieces: list[Piece], starts: np.ndarray, ends: np.ndarray, context: str, longest: int) -> tuple[float, str]:
    """Try every span of every row."""
    found = []
    for row, piece in enumerate(pieces):
        for first, place in enumerate(piece.offsets):
            for last in range(first, min(first + longest, len(piece.offsets))):
                end = piece.offsets[last]
                if place is not None and end is not None:
                    found.append((float(starts[row, first]) + float(ends[row, last]), context[place[0] : end[1]]))
    return max(found)


@pytest.mark.parametrize("longest", [2, 128])
def test_the_best_span_of_all_pieces_wins(monkeypatch: pytest.MonkeyPatch, longest: int) -> None:
    monkeypatch.setattr(answers, "LONGEST", longest)
    rng = np.random.default_rng(longest)
    for _ in range(20):
        lengths = rng.integers(3, 9, 3)
        pieces = [
            Piece(0, [None, None, *((n * 3, n * 3 + 2) for n in range(row, row + length))])
            for row, length in enumerate(lengths)
        ]
        starts, ends = rng.standard_normal((2, 3, 12)).astype(np.float32)  # wider than the rows, as a padded batch is
        expected = slowly(pieces, starts, ends, CONTEXT, longest)
        assert best_answers(pieces, starts, ends, [CONTEXT], may_be_none=False) == [expected[1]]
        none = float((starts[:, 0] + ends[:, 0]).min())
        assert best_answers(pieces, starts, ends, [CONTEXT], may_be_none=True) == [
            "" if none >= expected[0] else expected[1]
        ]


def test_a_reader_without_faults_is_exact_on_split_contexts_and_on_questions_without_an_answer(
    tokenizer: GPT2TokenizerFast,
) -> None:
    texts = ["blue", "nobody knows why", ""]
    examples = [
        {
            "question": "What?",
            "context": CONTEXT,
            "answers": {"text": [text] if text else [], "answer_start": [CONTEXT.rindex(text)] if text else []},
        }
        for text in texts
    ]
    task = QuestionAnswering(tokenizer, 40)
    rows = task.rows(examples)
    assert len(rows) > 6
    places = [[row[name] for row in rows] for name in ("start_positions", "end_positions")]
    logits = [8.0 * np.eye(max(len(row["input_ids"]) for row in rows))[column] for column in places]

    compute = task.metrics(examples)
    assert compute(SimpleNamespace(predictions=logits)) == {"exact_match": 1.0, "f1": 1.0}
    silent = [np.zeros_like(part) + 8.0 * np.eye(part.shape[1])[0] for part in logits]  # every row says "no answer"
    assert compute(SimpleNamespace(predictions=silent)) == {"exact_match": 1 / 3, "f1": 1 / 3}
