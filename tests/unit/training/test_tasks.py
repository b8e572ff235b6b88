"""Rows that a task makes of examples, and its scores."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gptrio import GPT2TokenizerFast
from gptrio.errors import OptionError
from gptrio.training.answers import answer_scores
from gptrio.training.files import read_examples
from gptrio.training.tasks import (
    IGNORE,
    LanguageModeling,
    QuestionAnswering,
    Task,
    TextClassification,
    TokenClassification,
    entities,
    entity_scores,
)


@pytest.fixture(scope="module")
def tokenizer() -> GPT2TokenizerFast:
    return GPT2TokenizerFast.from_pretrained("gptrio/stdlib-gpt2", add_prefix_space=True)


def test_language_modeling_joins_texts_and_cuts_them_into_full_rows(tokenizer: GPT2TokenizerFast) -> None:
    texts = ["def f(x): return x\n" * 5, "import os"]
    rows = LanguageModeling(tokenizer, 8).rows([{"text": text} for text in texts])
    end = tokenizer.eos_token_id
    joined = [token for text in texts for token in [*tokenizer(text)["input_ids"], end]]
    assert [token for row in rows for token in row["input_ids"]] == joined[: sum(len(row["input_ids"]) for row in rows)]
    assert {len(row["input_ids"]) for row in rows[:-1]} == {8} and all(
        row["labels"] == row["input_ids"] for row in rows
    )
    assert joined.count(end) == 2


def test_labels_of_texts(tokenizer: GPT2TokenizerFast) -> None:
    examples = [{"text": "spam " * 40, "label": "10"}, {"text": "ham", "label": 9}]
    assert TextClassification.label_names(examples) == ["9", "10"]
    task = TextClassification(tokenizer, 16, ["9", "10"])
    rows = task.rows(examples)
    assert [row["labels"] for row in rows] == [1, 0]
    assert [len(row["input_ids"]) for row in rows] == [16, len(tokenizer("ham")["input_ids"])]
    found = SimpleNamespace(predictions=np.array([[0.0, 1.0], [0.2, 0.9]]), label_ids=np.array([1, 0]))
    assert task.metrics([])(found) == {"accuracy": 0.5}
    with pytest.raises(OptionError, match=r"label 'x' is none of the 2 that the model learns: '9', '10'") as caught:
        task.rows([*examples, {"text": "", "label": "x"}])
    assert caught.value.index == 2


def test_only_the_first_token_of_a_word_has_its_tag(tokenizer: GPT2TokenizerFast) -> None:
    example = {"tokens": ["Zanzibar", "is", "Tanganyika"], "tags": ["B-place", "O", "B-place"]}
    names = TokenClassification.label_names([example])
    assert names == ["O", "B-place"]
    (row,) = TokenClassification(tokenizer, 64, names).rows([example])
    lengths = [len(tokenizer([word], is_split_into_words=True)["input_ids"]) for word in example["tokens"]]
    assert lengths[0] > 1 < lengths[2]
    expected = [
        tag for length, first in zip(lengths, (1, 0, 1), strict=True) for tag in [first, *[IGNORE] * (length - 1)]
    ]
    assert row["labels"] == expected and len(row["input_ids"]) == len(expected)
    with pytest.raises(OptionError, match="label 'B-x' is none of the 2") as caught:
        TokenClassification(tokenizer, 64, names).rows([example, {**example, "tags": ["O", "O", "B-x"]}])
    assert caught.value.index == 1


QA = {"question": "who?", "context": "it was Bob", "answers": {"text": ["Bob"], "answer_start": [7]}}


def qa_with(texts: object, starts: object) -> dict[str, object]:
    return {**QA, "answers": {"text": texts, "answer_start": starts}}


@pytest.mark.parametrize(
    ("kind", "example", "message"),
    [
        (LanguageModeling, {"text": 5}, "the text is 5; expected a text"),
        (LanguageModeling, {"text": "a \ud800"}, r"the text holds half of a character, \\ud800, at 2"),
        (TextClassification, {"text": " ", "label": "a"}, "the text is empty; leave the record out"),
        (TextClassification, {"text": "a", "label": ["b"]}, r"label is \['b'\]; expected a text or a number"),
        (TextClassification, {"text": "a", "label": ""}, "label is ''; expected a text or a number"),
        (TokenClassification, {"tokens": ["a", "b", "c"], "tags": ["O"]}, "3 words, and 1 tag; give each word one"),
        (TokenClassification, {"tokens": "a b", "tags": ["O"]}, "tokens is 'a b'; expected a list with an entry"),
        (TokenClassification, {"tokens": [], "tags": []}, "there is no word; leave the record out"),
        (TokenClassification, {"tokens": ["a", 3], "tags": ["O", "O"]}, "word 2 is 3; expected a text"),
        (TokenClassification, {"tokens": ["a"], "tags": [None]}, "tag 1 is None; expected a text or a number"),
        (QuestionAnswering, {**QA, "question": ""}, "the question is empty"),
        (QuestionAnswering, {**QA, "context": 3}, "the context is 3; expected a text"),
        (QuestionAnswering, {**QA, "answers": ["Bob"]}, r"answers is \['Bob'\]; expected lists 'text' and"),
        (QuestionAnswering, {**QA, "answers": {"text": ["Bob"]}}, "expected lists 'text' and 'answer_start' of one"),
        (QuestionAnswering, qa_with(["Bob"], []), "expected lists 'text' and 'answer_start' of one length"),
        (QuestionAnswering, qa_with(["Bob"], ["7"]), "an answer is 'Bob' at '7'; expected a text and a whole number"),
        (QuestionAnswering, qa_with(["Bob"], [8]), "answer 'Bob' at character 8 is not within the context of 10"),
        (QuestionAnswering, qa_with(["Bob"], [-1]), "answer 'Bob' at character -1 is not within the context"),
    ],
)
def test_parts_of_examples_that_do_not_fit_are_named(kind: type[Task], example: object, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        kind.check(example)


def test_what_is_fine_and_what_is_in_doubt() -> None:
    LanguageModeling.check({"text": ""})
    TextClassification.check({"text": "a", "label": 0})
    TokenClassification.check({"tokens": ["a", ""], "tags": ["O", 1]})
    for example in (QA, qa_with([], []), qa_with(["it", "Bob"], [0, 7])):
        QuestionAnswering.check(example)
        assert QuestionAnswering.doubt(example) == ""
    assert QuestionAnswering.doubt(qa_with(["it", "Bob"], [0, 6])) == (
        "answer 'Bob' does not stand at character 6, where the context has ' Bo'"
    )


def test_a_question_that_leaves_no_room_for_its_context_is_named(tokenizer: GPT2TokenizerFast) -> None:
    task, long = QuestionAnswering(tokenizer, 32), {**QA, "question": "who " * 13, "context": "it was Bob. " * 9}
    with pytest.raises(OptionError, match="the question has 26 tokens, and 23 leave room") as caught:
        task.rows([QA, long])
    assert caught.value.index == 1
    short = {**QA, "question": "who " * 12}  # context and question fit together
    assert len(task.rows([QA, short])) == 2


def test_answers_are_found_by_their_tokens(tokenizer: GPT2TokenizerFast, reference_dir: Path) -> None:
    columns = {name: name for name in QuestionAnswering.columns}
    for file in ("xquad_en.json", "xquad_zh.json"):
        examples = read_examples(reference_dir / "qa" / file, columns)[:60]
        for example in examples:
            text, pair = example["answers"]["text"][0], (example["question"].strip(), example["context"])
            row = QuestionAnswering(tokenizer, 4096).rows([example])[0]
            encoded = tokenizer(*pair, return_offsets_mapping=True, verbose=False)
            assert row["input_ids"] == encoded["input_ids"]
            offsets = encoded["offset_mapping"][row["start_positions"] : row["end_positions"] + 1]
            span = example["context"][offsets[0][0] : offsets[-1][1]]
            assert text in span and len(span) <= len(text) + 12  # whole tokens: a little more than the answer


def test_a_piece_without_the_answer_has_position_0(tokenizer: GPT2TokenizerFast) -> None:
    context = "nothing to see here. " * 20 + "The key is blue."
    answer = {"text": ["blue"], "answer_start": [context.index("blue")]}
    rows = QuestionAnswering(tokenizer, 64).rows([{"question": " What?", "context": context, "answers": answer}])
    assert len(rows) > 2 and rows[0]["start_positions"] == rows[0]["end_positions"] == 0
    last = rows[-1]
    assert "blue" in tokenizer.decode(last["input_ids"][last["start_positions"] : last["end_positions"] + 1])
    without = {"text": [], "answer_start": []}
    (row,) = QuestionAnswering(tokenizer, 64).rows([{"question": "?", "context": "a b", "answers": without}])
    assert (row["start_positions"], row["end_positions"]) == (0, 0)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O B-a I-a O", {("a", 1, 3)}),
        ("B-a B-a I-b", {("a", 0, 1), ("a", 1, 2), ("b", 2, 3)}),
        ("I-a I-a O I-a", {("a", 0, 2), ("a", 3, 4)}),
        ("B-a", {("a", 0, 1)}),
        ("O", set()),
        ("", set()),
    ],
)
def test_entities_of_tags(tags: str, found: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == found


def test_scores_of_entities() -> None:
    golds = [["B-a", "I-a", "O", "B-b"], ["O", "B-b"]]
    guesses = [["B-a", "I-a", "O", "O"], ["B-b", "B-a"]]
    assert entity_scores(guesses, golds) == {"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3}
    assert entity_scores(golds, golds) == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert entity_scores([["O"]], [["O"]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_token_metrics_leave_out_what_has_no_tag(tokenizer: GPT2TokenizerFast) -> None:
    task = TokenClassification(tokenizer, 64, ["O", "B-a"])
    predictions = np.array([[[0, 1.0], [1.0, 0], [1.0, 0]], [[1.0, 0], [0, 1.0], [0, 1.0]]])  # B O O, O B B
    found = SimpleNamespace(predictions=predictions, label_ids=np.array([[1, 0, IGNORE], [0, IGNORE, 1]]))
    assert task.metrics([])(found) == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "accuracy": 1.0}


@pytest.mark.parametrize(
    ("guess", "answers", "scores"),
    [
        ("The cat!", ["a cat"], (1.0, 1.0)),
        ("black cat", ["cat", "the black dog, there"], (0.0, 2 / 3)),
        ("", [""], (1.0, 1.0)),
        ("cat", [""], (0.0, 0.0)),
    ],
)
def test_scores_of_answers(guess: str, answers: list[str], scores: tuple[float, float]) -> None:
    assert answer_scores(guess, answers) == pytest.approx(scores)
