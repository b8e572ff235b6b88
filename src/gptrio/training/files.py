"""Training examples from files: plain text, JSON, JSON lines, CSV, TSV, CoNLL and SQuAD."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from gptrio.errors import FileOptionError, OptionError
from gptrio.utils.records import csv_rows, json_lines, parse_json
from gptrio.utils.text import decode_text


class Example(dict[str, Any]):
    """The columns of one record of a file.

    Args:
        columns: by the names that a task gives them.
        place: where the record stands, in words.
    """

    def __init__(self, columns: Mapping[str, Any], place: str) -> None:
        super().__init__(columns)
        self.place = place


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
    if path.is_dir():
        raise FileOptionError(f"{path} is a folder; give a file with examples")
    if not path.exists():
        raise FileOptionError(f"there is no file {path}; give one with examples")
    if path.suffix.lower() not in _READERS:
        raise OptionError(
            f"{path} ends in none of {', '.join(_READERS)}, by which the format is known; rename it, or write a pipe "
            "to such a file first"
        )
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
        raise OptionError(f"{place}: expected an object with {_listed(columns.values())}, not {shown(record)}")
    for name, column in columns.items():
        if column not in record:
            has = _listed(str(key)[:30] for key in record) or "none"
            raise OptionError(f"{place}: there is no column {column!r} among {has}; say which one holds the {name}")
        if record[column] is None:
            raise OptionError(f"{place}: column {column!r} holds no {name}; give it one, or leave the record out")
    return Example({name: _as_table(record[column]) for name, column in columns.items()}, place)


def _as_table(value: Any) -> Any:
    """A list of answers, as in files of SQuAD, as a table of columns, as data sets of the hub have it."""
    keys = ("text", "answer_start")
    if isinstance(value, list) and value and all(isinstance(one, dict) and one.keys() >= set(keys) for one in value):
        return {key: [one[key] for one in value] for key in keys}
    return value


def shown(value: Any) -> str:
    """The beginning of a value, for a message."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _plain(text: str, path: Path, numbered: bool) -> Iterator[tuple[str, Any]]:
    if text.strip():
        yield str(path), {"text": text}


def _json(text: str, path: Path, numbered: bool) -> Iterator[tuple[str, Any]]:
    value = parse_json(text, str(path))
    if isinstance(value, dict) and "data" in value:
        yield from _questions(value, path)
        return
    if not isinstance(value, list):
        raise OptionError(f"{path} holds a {type(value).__name__}; expected a list of objects, or SQuAD's layout")
    yield from ((f"example {number} of {path}", record) for number, record in enumerate(value, start=1))


def _json_lines(text: str, path: Path, numbered: bool) -> Iterator[tuple[str, Any]]:
    yield from ((f"line {number} of {path}", record) for number, record in json_lines(text, str(path)))


def _questions(content: dict[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """The questions of SQuAD's layout: articles of paragraphs, a context each, with questions."""
    for in_article, article in _parts(content, "data", "entry", str(path)):
        for in_paragraph, paragraph in _parts(article, "paragraphs", "paragraph", in_article):
            context = {name: value for name, value in paragraph.items() if name == "context"}
            for place, question in _parts(paragraph, "qas", "question", in_paragraph):
                known = f" (id {question['id']!r})" if "id" in question else ""
                yield f"{place}{known}", {**question, **context}


def _parts(whole: dict[str, Any], name: str, kind: str, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects in a list of SQuAD's layout, with their places; without the list, the whole is the only one."""
    if name not in whole:
        yield place, whole
        return
    if not isinstance(whole[name], list):
        raise OptionError(f"{place}: {name!r} is {shown(whole[name])}; expected a list, as in SQuAD's layout")
    for number, part in enumerate(whole[name], start=1):
        if not isinstance(part, dict):
            raise OptionError(f"{kind} {number} of {place} is {shown(part)}; expected an object, as in SQuAD's layout")
        yield f"{kind} {number} of {place}", part


def _table(delimiter: str, quoting: Literal[0, 3]) -> Callable[[str, Path, bool], Iterator[tuple[str, Any]]]:
    def rows(text: str, path: Path, numbered: bool) -> Iterator[tuple[str, Any]]:
        names: list[str] | None = None
        for number, row in csv_rows(text, str(path), delimiter, quoting):
            if names is None:
                names = [str(count) for count in range(1, len(row) + 1)] if numbered else row
                if not numbered:
                    continue
            if len(row) != len(names):
                raise OptionError(f"line {number} of {path}: {len(row)} columns, where the first line has {len(names)}")
            yield f"line {number} of {path}", dict(zip(names, row, strict=True))

    return rows


def _tagged_words(text: str, path: Path, numbered: bool) -> Iterator[tuple[str, Any]]:
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        parts = line.split("\t") if "\t" in line else line.split()
        if not line.strip() and words:
            yield f"sentence in line {number - len(words)} of {path}", {"tokens": words, "tags": tags}
            words, tags = [], []
        elif line.strip() and not line.startswith("-DOCSTART-"):
            if len(parts) < 2:
                raise OptionError(f"line {number} of {path}: expected a word and its tag, not {shown(line)}")
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
