"""Records of text files, each with the line where it begins: rows of CSV, and JSON in each line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, Literal

from gptrio.errors import OptionError

_LONGEST_FIELD = 2**31 - 1  # of CSV, in characters; the most that Python takes on every system


def csv_rows(
    text: str, name: str, delimiter: str = ",", quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
) -> Iterator[tuple[int, list[str]]]:
    """The rows of CSV that are not empty, each with the line from 1 where it begins.

    Args:
        text: of the whole file.
        name: of the file, for errors.
        delimiter: what stands between cells.
        quoting: `csv.QUOTE_NONE` where quotes are characters as others.

    Raises:
        OptionError: a quote is never closed, or text follows one that was closed.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    first = 1
    while True:
        before = csv.field_size_limit(_LONGEST_FIELD)  # of the whole process
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise OptionError(_broken(name, first, str(error))) from error
        finally:
            csv.field_size_limit(before)
        if row is None:
            return
        if row:
            yield first, row
        first = reader.line_num + 1


def _broken(name: str, line: int, reason: str) -> str:
    """What is wrong with a row of CSV, by what Python says of it."""
    if "unexpected end" in reason:
        return f"line {line} of {name} opens a quote that is never closed; close it, or write it twice inside of quotes"
    if "expected after" in reason:
        return f"line {line} of {name} goes on behind a closed quote; write a quote twice inside of quotes"
    return f"line {line} of {name} is not CSV: {reason}"


def json_lines(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """The values of JSON lines, each with its line from 1; empty lines are passed over.

    Raises:
        OptionError: a line is not JSON.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, parse_json(line, f"line {number} of {name}")


def parse_json(text: str, name: str) -> Any:
    """The value of a JSON text.

    Raises:
        OptionError: it is none, or Python cannot read it.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise OptionError(f"{name} is not JSON: {error.msg} at {line}column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets
        raise OptionError(f"{name} is JSON that cannot be read: {error}") from error
