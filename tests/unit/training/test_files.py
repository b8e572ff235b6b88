"""Examples read from files: each format, and what is said of a malformed one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptrio.errors import FileOptionError, OptionError
from gptrio.training.files import read_examples

TEXT_AND_LABEL = {"text": "text", "label": "label"}
WORDS_AND_TAGS = {"tokens": "tokens", "tags": "tags"}
QUESTION = {"question": "question", "context": "context", "answers": "answers"}
PAIRS = [{"text": "good", "label": "1"}, {"text": 'so, "so"', "label": "0"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "".join(json.dumps(pair) + "\n\n" for pair in PAIRS)),
        ("a.json", json.dumps(PAIRS)),
        ("a.csv", 'text,label\r\ngood,1\r\n"so, ""so""",0\r\n'),
        ("a.tsv", 'label\ttext\n1\tgood\n0\tso, "so"\n'),
        ("a.csv", "\ufefftext,label\ngood,1\n\n" + '"so, ""so""",0'),
    ],
)
def test_every_format_gives_the_same_examples(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_examples(tmp_path / name, TEXT_AND_LABEL) == PAIRS


def test_columns_are_named_or_counted(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("ham\tGo on\nspam\tFree entry\n")
    found = read_examples(tmp_path / "a.tsv", {"text": "2", "label": "1"})
    assert found == [{"text": "Go on", "label": "ham"}, {"text": "Free entry", "label": "spam"}]
    (tmp_path / "b.jsonl").write_text('{"stars": 5, "review": "fine", "more": null}')
    assert read_examples(tmp_path / "b.jsonl", {"text": "review", "label": "stars"}) == [{"text": "fine", "label": 5}]


def test_a_text_file_is_one_text(tmp_path: Path) -> None:
    (tmp_path / "a.TXT").write_text("one\n\ntwo\n")
    assert read_examples(tmp_path / "a.TXT", {"text": "text"}) == [{"text": "one\n\ntwo\n"}]


def test_sentences_of_words_and_tags(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("-DOCSTART- O\n\nMr\tO\nBean\tB-person\n\t\n\nHi NN O\n")
    assert read_examples(tmp_path / "a.conll", WORDS_AND_TAGS) == [
        {"tokens": ["Mr", "Bean"], "tags": ["O", "B-person"]},
        {"tokens": ["Hi"], "tags": ["O"]},
    ]


@pytest.mark.parametrize("layout", ["squad", "table", "flat"])
def test_questions_in_each_layout(tmp_path: Path, layout: str) -> None:
    answers: Any = {"text": ["two"], "answer_start": [4]}
    if layout == "squad":
        qas = [{"id": "7", "question": "how many?", "answers": [{"text": "two", "answer_start": 4}]}]
        value: Any = {"data": [{"paragraphs": [{"context": "all two", "qas": qas}]}]}
    else:
        value = [{"question": "how many?", "context": "all two", "answers": answers}]
        value[0]["answers"] = [{"text": "two", "answer_start": 4}] if layout == "flat" else answers
        value = {"data": value} if layout == "table" else value
    (tmp_path / "a.json").write_text(json.dumps(value))
    expected = {"question": "how many?", "context": "all two", "answers": answers}
    found = read_examples(tmp_path / "a.json", QUESTION)
    assert found == [expected]
    entry = f"entry 1 of {tmp_path / 'a.json'}"
    places = {"squad": f"question 1 of paragraph 1 of {entry} (id '7')", "table": entry}
    assert found[0].place == places.get(layout, f"example 1 of {tmp_path / 'a.json'}")


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("a.parquet", "x", TEXT_AND_LABEL, r"a.parquet ends in none of .txt, .json, .*; rename it, or write a pipe"),
        ("a.txt", " \n", {"text": "text"}, "holds no example"),
        ("a.csv", "text,label\n", TEXT_AND_LABEL, "holds no example"),
        (
            "a.csv",
            "body,label\nx,1\n",
            TEXT_AND_LABEL,
            r"line 2 of .*: there is no column 'text' among 'body', 'label'",
        ),
        ("a.csv", "text,label\nx,1,2\n", TEXT_AND_LABEL, r"line 2 of .*: 3 columns, where the first line has 2"),
        (
            "a.csv",
            'text,label\n"a\nb",0\n\n"x,1\ny,2\n',
            TEXT_AND_LABEL,
            r"line 5 of .*a.csv opens a quote that is never closed",
        ),
        ("a.csv", 'text,label\n"x"y,1\n', TEXT_AND_LABEL, r"line 2 of .*a.csv goes on behind a closed quote"),
        (
            "a.jsonl",
            '{"text": "x"}\n{"text": \n',
            {"text": "text"},
            r"line 2 of .*a.jsonl is not JSON: Expecting value at column 10",
        ),
        ("a.jsonl", '["x"]\n', {"text": "text"}, r"line 1 of .*: expected an object with 'text', not \['x'\]"),
        ("a.json", '{"text": "x"}', {"text": "text"}, r"holds a dict; expected a list of objects"),
        (
            "a.json",
            '{"data": [{"paragraphs": [{"qas": [{}]}]}]}',
            QUESTION,
            "question 1 of paragraph 1 of entry 1 .*no column 'question' among none",
        ),
        (
            "a.json",
            '{"data": [{"paragraphs": [{"qas": 3}]}]}',
            QUESTION,
            "paragraph 1 of entry 1 .*: 'qas' is 3; expected",
        ),
        ("a.json", '{"data": [3]}', QUESTION, "entry 1 of .*a.json is 3; expected an object, as in SQuAD's layout"),
        (
            "a.json",
            '{"data": [{"id": "7"}]}',
            QUESTION,
            r"entry 1 of .*a.json \(id '7'\): there is no column 'question'",
        ),
        ("a.json", "[" * 100_000, {"text": "text"}, "a.json is JSON that cannot be read: maximum recursion depth"),
        ("a.jsonl", '{"text": null}', {"text": "text"}, r"line 1 of .*: column 'text' holds no text; give it one"),
        ("a.conll", "Mr\n", WORDS_AND_TAGS, r"line 1 of .*: expected a word and its tag, not 'Mr'"),
    ],
)
def test_what_is_malformed_is_named(tmp_path: Path, name: str, content: str, columns: Any, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(OptionError, match=message):
        read_examples(tmp_path / name, columns)


def test_a_file_that_is_missing_or_in_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(FileOptionError, match="there is no file"):
        read_examples(tmp_path / "a.txt", {"text": "text"})
    with pytest.raises(FileOptionError, match="is a folder"):
        read_examples(tmp_path, {"text": "text"})
    (tmp_path / "a.txt").write_bytes(b"\n\ncaf\xe9")
    with pytest.raises(OptionError, match=r"a.txt is not UTF-8 text \(byte 5, in line 3\)"):
        read_examples(tmp_path / "a.txt", {"text": "text"})
    (tmp_path / "a.txt").write_text("café", encoding="utf-16")  # as a Windows editor saves it
    assert read_examples(tmp_path / "a.txt", {"text": "text"}) == [{"text": "café"}]


def test_files_that_people_use(reference_dir: Path) -> None:
    spam = read_examples(reference_dir / "classification/sms_spam.tsv", {"text": "2", "label": "1"})
    assert len(spam) == 5574 and sum(row["label"] == "spam" for row in spam) == 747
    banking = read_examples(reference_dir / "classification/banking77_train.csv", {"text": "text", "label": "category"})
    assert len(banking) == 10_003 and len({row["label"] for row in banking}) == 77
    sentences = read_examples(reference_dir / "ner/wnut17_train.conll", WORDS_AND_TAGS)
    assert len(sentences) == 3394 and all(len(row["tokens"]) == len(row["tags"]) for row in sentences)
    questions = read_examples(reference_dir / "qa/xquad_en.json", QUESTION)
    assert len(questions) == 1190
    for row in questions:
        start, text = row["answers"]["answer_start"][0], row["answers"]["text"][0]
        assert row["context"][start : start + len(text)] == text
