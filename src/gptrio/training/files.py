"""Training examples from files: plain text, JSON, JSON lines, CSV, TSV, CoNLL and SQuAD."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from gptrio.errors import FileOptionError, OptionError
from gptrio.utils.text import decode_text

Example = dict[str, Any]


def read_examples(path: Path, columns: Mapping[str, str]) -> list[Example]:
    """The examples of a file, each with the columns asked for.

    Args:
        path: a file whose name ends in .txt (one text), .jsonl, .json (a list of objects, or SQuAD's layout), .csv,
            .tsv, .conll or .bio (a word and its tag in each line, an empty line after each sentence).
        columns: what the examples are to hold and the column of the file that holds it, such as
            {"text": "review", "label": "stars"}. A number counts the columns of a CSV or TSV file without a header,
            from 1.

    Raises:
        FileOptionError: there is no such file.
        OptionError: the format is unknown, a line is malformed, there is no such column, or no example at all.
    """
    if not path.is_file():
        raise FileOptionError(f"there is no file {path}; give one with training examples")
    if path.suffix.lower() not in _READERS:
        raise OptionError(f"{path.name} ends in none of {', '.join(_READERS)}, by which the format is known; rename it")
    text = decode_text(path.read_bytes(), str(path))
    numbered = all(name.isdigit() for name in columns.values())
    examples = [
        _chosen(record, columns, place) for place, record in _READERS[path.suffix.lower()](text, path, numbered)
    ]
    if not examples:
        raise OptionError(f"{path} holds no example; give a file with one at least")
    return examples


def _chosen(record: Any, columns: Mapping[str, str], place: str) -> Example:
    """The columns of one record, under the names asked for."""
    if not isinstance(record, dict):
        raise OptionError(f"{place}: expected an object with {_listed(columns.values())}, not {str(record)[:40]!r}")
    for name, column in columns.items():
        if record.get(column) is None:
            has = _listed(str(key)[:30] for key in record)
            raise OptionError(f"{place}: there is no column {column!r} among {has}; say which one holds the {name}")
    return {name: record[column] for name, column in columns.items()}


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _plain(text: str, path: Path, numbered: bool) -> Iterator[tuple[str, Any]]:
    if text.strip():
        yield str(path), {"text": text}


def _json(text: str, path: Path, numbered: bool) -> Iterator[tuple[str, Any]]:
    value = _parsed(text, str(path))
    if isinstance(value, dict) and "data" in value:
        value = list(_questions(value["data"], path))
    if not isinstance(value, list):
        raise OptionError(f"{path} holds {type(value).__name__}; expected a list of objects, or SQuAD's layout")
    yield from ((f"{path}, example {number}", record) for number, record in enumerate(value, start=1))


def _json_lines(text: str, path: Path, numbered: bool) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(io.StringIO(text), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, _parsed(line, place)


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise OptionError(f"{place}: no valid JSON ({error})") from error


def _questions(articles: Any, path: Path) -> Iterator[Example]:
    """The questions of SQuAD's layout: articles of paragraphs, a context each, with questions."""
    try:
        for article in articles:
            for paragraph in article.get("paragraphs", [article]):
                for question in paragraph.get("qas", [paragraph]):
                    answers = question["answers"]
                    if isinstance(answers, list):  # data sets of the hub have a table of columns already
                        columns = ("text", "answer_start")
                        answers = {name: [answer[name] for answer in answers] for name in columns}
                    yield {**question, "context": paragraph["context"], "answers": answers}
    except (AttributeError, KeyError, TypeError) as error:
        raise OptionError(f"{path} is not in SQuAD's layout (data, paragraphs, qas, answers): {error!r}") from error


def _table(delimiter: str, quoting: Literal[0, 3]) -> Callable[[str, Path, bool], Iterator[tuple[str, Any]]]:
    def rows(text: str, path: Path, numbered: bool) -> Iterator[tuple[str, Any]]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
        names: list[str] | None = None
        try:
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                if names is None:
                    names = [str(number) for number in range(1, len(row) + 1)] if numbered else row
                    if not numbered:
                        continue
                if row and len(row) != len(names):
                    raise OptionError(f"{place}: {len(row)} columns, where the first line has {len(names)}")
                if row:
                    yield place, dict(zip(names, row, strict=True))
        except csv.Error as error:
            raise OptionError(f"{path}, line {reader.line_num}: {error}") from error

    return rows


def _tagged_words(text: str, path: Path, numbered: bool) -> Iterator[tuple[str, Any]]:
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        parts = line.split("\t") if "\t" in line else line.split()
        if not line.strip() and words:
            yield f"{path}, line {number}", {"tokens": words, "tags": tags}
            words, tags = [], []
        elif line.strip() and not line.startswith("-DOCSTART-"):
            if len(parts) < 2:
                raise OptionError(f"{path}, line {number}: expected a word and its tag, not {line!r}")
            words.append(parts[0])
            tags.append(parts[-1].strip())


_READERS: dict[str, Callable[[str, Path, bool], Iterator[tuple[str, Any]]]] = {
    ".txt": _plain,
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _table(",", csv.QUOTE_MINIMAL),
    ".tsv": _table("\t", csv.QUOTE_NONE),
    ".conll": _tagged_words,
    ".bio": _tagged_words,
}
