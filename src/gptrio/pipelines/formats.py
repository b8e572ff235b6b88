"""Files and pipes that `gptrio run` reads inputs from and writes results to: JSON, JSON lines, CSV and text."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import pickle
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from gptrio.errors import FileOptionError, GptrioError, OptionError, UnknownNameError, name_place, nearest, warn
from gptrio.hub import is_stream, write_text
from gptrio.utils.records import csv_rows, json_lines, parse_json
from gptrio.utils.text import decode_text

NO_COLUMNS = "the results of this task are lists of numbers, which CSV has no columns for; write JSON"


class PipelineDataFormat(ABC):
    """Reads the inputs of a pipeline and writes its results.

    Args:
        output_path: file for the results; None for standard output.
        input_path: file with the inputs; None for standard input.
        column: the column that holds the input. Several, separated by commas, are arguments of the pipeline's call;
            `argument=column` reads an argument from a column of another name. None if there is one column only.
        overwrite: replace an output file that exists.

    Raises:
        FileOptionError: the output exists and is not to be replaced, or the input does not exist.

    Attributes:
        column: one name, or pairs (argument, column).
        is_multi_columns: whether there are several columns, so that inputs are dictionaries.
        takes_only_column: whether the only column of a record is read though `column` names another one.
    """

    SUPPORTED_FORMATS: ClassVar[list[str]] = ["json", "csv", "pipe", "jsonl"]
    _written: ClassVar[str] = "json"  # the format of results where the output's name does not end in one

    def __init__(
        self, output_path: str | None, input_path: str | None, column: str | None, overwrite: bool = False
    ) -> None:
        self.output_path, self.input_path = output_path, input_path
        names = column.split(",") if column is not None else [""]
        self.is_multi_columns = len(names) > 1
        self.column: list[Any] = names
        self.takes_only_column = False
        self._lines: list[int] = []  # of the records, where they begin
        if self.is_multi_columns:
            self.column = [_argument_and_column(name) for name in names]
        check_paths(input_path, output_path, overwrite)

    @abstractmethod
    def __iter__(self) -> Iterator[Any]:
        """The inputs: texts, or dictionaries of arguments if there are several columns."""

    def save(self, data: Any) -> None:
        """Write results, a list of dictionaries, in the format that the output's name ends in, else in the input's."""
        self._write(_WRITERS[self.written](data))

    @property
    def written(self) -> str:
        """The format of results: "json", "jsonl" or "csv"."""
        end = (self.output_path or "").rpartition(".")[2]
        return end if end in _WRITERS else self._written

    def save_binary(self, data: Any) -> str:
        """Pickle results beside the output's path, and return the path of that file."""
        if self.output_path is None:
            raise OptionError("binary results need a file; pass output_path")
        path = Path(self.output_path).with_suffix(".pickle")
        path.write_bytes(pickle.dumps(data))
        return str(path)

    @staticmethod
    def from_str(
        format: str, output_path: str | None, input_path: str | None, column: str | None, overwrite: bool = False
    ) -> PipelineDataFormat:
        """The format of a name: "json", "jsonl", "csv" or "pipe"; the other arguments are those of the class.

        Raises:
            UnknownNameError: there is no such format.
        """
        if format not in _FORMATS:
            raise UnknownNameError(f"format={format!r} is unknown; expected one of {list(_FORMATS)}")
        return _FORMATS[format](output_path, input_path, column, overwrite=overwrite)

    def _text(self) -> str:
        """The whole input; OptionError if it is no text."""
        standard: Any = getattr(sys.stdin, "buffer", sys.stdin)
        data = standard.read() if self.input_path is None else Path(self.input_path).read_bytes()
        return data if isinstance(data, str) else decode_text(data, self._name)

    @property
    def _name(self) -> str:
        return "standard input" if self.input_path is None else f"input {self.input_path!r}"

    def place(self, index: int) -> str:
        """Where the record with this number from 0 stands, in words."""
        line = f" (line {self._lines[index]})" if index < len(self._lines) else ""
        return f"record {index + 1}{line} of {self._name}"

    def _write(self, text: str) -> None:
        """Write the output file, or standard output."""
        if self.output_path is None:
            print(text, end="\n" if text and not text.endswith("\n") else "")
        else:
            write_text(self.output_path, text)

    def _inputs(self, records: list[Any]) -> Iterator[Any]:
        """The columns of records, in which each name is looked up."""
        for index, record in enumerate(records):
            if self.is_multi_columns:
                yield {argument: self._value(record, name, self.place(index)) for argument, name in self.column}
            else:
                yield self._value(record, self.column[0], self.place(index))

    def _value(self, record: Any, name: str, place: str) -> Any:
        """A column of the record at a place; the only one there is if no name was given.

        Raises:
            OptionError: there is no such column.
        """
        if isinstance(record, str) and not name:
            return record
        if not isinstance(record, dict):
            raise OptionError(f"{place} is a {type(record).__name__}; expected an object with columns")
        known = list(record)
        if len(known) == 1 and (not name or (self.takes_only_column and not self.is_multi_columns)):
            name = known[0]
        if name not in known:
            what = f"no column {name!r}" if name else "several columns" if known else "no columns"
            hint = (
                f"{nearest(name, known)} pass column=, of {', '.join(sorted(known))}".lstrip()
                if known
                else "give it one"
            )
            raise OptionError(f"{place} has {what}; {hint}")
        if record[name] is None:
            raise OptionError(f"{place} has no value in column {name!r}; give it one")
        return record[name]


class CsvPipelineDataFormat(PipelineDataFormat):
    """A CSV file with names of columns in its first line; see `PipelineDataFormat`."""

    _written = "csv"

    def __iter__(self) -> Iterator[Any]:
        """The inputs, a line each.

        Raises:
            OptionError: it is not CSV.
        """
        return self._inputs(self._read())

    def _read(self) -> list[dict[str, str | None]]:
        """All records; cells beyond the columns, as unquoted commas make them, are left out with a warning."""
        records, self._lines = list[dict[str, str | None]](), []
        rows = csv_rows(self._text(), self._name)
        names = next(rows, (1, list[str]()))[1]
        for line, row in rows:
            records.append(dict(zip(names, [*row, *[None] * (len(names) - len(row))], strict=False)))
            self._lines.append(line)
            if len(row) > len(names):
                warn(
                    f"{self.place(len(records) - 1)} has more cells than the columns {', '.join(names)}; what is in "
                    "them is left out, so put texts with commas in quotes"
                )
        return records


class JsonPipelineDataFormat(PipelineDataFormat):
    """A JSON file with a list of objects, or of texts; see `PipelineDataFormat`."""

    def __init__(
        self, output_path: str | None, input_path: str | None, column: str | None, overwrite: bool = False
    ) -> None:
        super().__init__(output_path, input_path, column, overwrite)
        self._entries = self._parse(self._text())
        if not isinstance(self._entries, list):
            raise OptionError(f"{self._name} holds a {type(self._entries).__name__}; expected a list of objects")

    def __iter__(self) -> Iterator[Any]:
        """The inputs, an element of the list each."""
        return self._inputs(self._entries)

    def _parse(self, text: str) -> Any:
        return parse_json(text, self._name)


class JsonLinesPipelineDataFormat(JsonPipelineDataFormat):
    """A file with a JSON object, or text, in each line; see `PipelineDataFormat`."""

    _written = "jsonl"

    def _parse(self, text: str) -> Any:
        entries = list(json_lines(text, self._name))
        self._lines = [line for line, _ in entries]
        return [value for _, value in entries]


class PipedPipelineDataFormat(PipelineDataFormat):
    """Lines of standard input, or of a file of text; columns are separated by tabs. See `PipelineDataFormat`."""

    def __iter__(self) -> Iterator[Any]:
        """The inputs, a line each, with its line break as in Transformers.

        Raises:
            OptionError: a line has fewer columns than there should be.
        """
        for number, line in enumerate(io.StringIO(self._text()), start=1):
            if not self.is_multi_columns:
                yield line
                continue
            values = line.split("\t")
            if len(values) < len(self.column):
                names = ", ".join(argument for argument, _ in self.column)
                raise OptionError(
                    f"line {number} of {self._name} has {len(values)} of {len(self.column)} columns; expected {names}, "
                    "with a tab between them"
                )
            yield {argument: value for (argument, _), value in zip(self.column, values, strict=False)}

    def save(self, data: Any) -> None:
        """Print results as a Python list, as Transformers does, or write them to the output file."""
        if self.output_path is None:
            print(data)
        else:
            super().save(data)


_FORMATS: dict[str, type[PipelineDataFormat]] = {
    "json": JsonPipelineDataFormat,
    "jsonl": JsonLinesPipelineDataFormat,
    "csv": CsvPipelineDataFormat,
    "pipe": PipedPipelineDataFormat,
}


def check_paths(input_path: str | None, output_path: str | None, overwrite: bool) -> None:
    """Check that an input exists and that an output may be written; None is standard input or output.

    Raises:
        FileOptionError: one of them is not so.
    """
    if input_path is not None and (os.path.isdir(input_path) or not os.path.exists(input_path)):
        raise FileOptionError(f"input {input_path!r} is not a file; check its path")
    if output_path is None or is_stream(output_path):
        return
    if not overwrite and os.path.isfile(output_path):
        raise FileOptionError(f"output {output_path!r} already exists; pass overwrite=True to replace it")
    if not output_path:
        raise FileOptionError("output '' names no file; give its path")
    folder = os.path.dirname(output_path) or os.curdir
    if not os.path.isdir(folder):
        raise FileOptionError(f"output {output_path!r} lies in no folder that exists; make {folder!r} first")
    if os.path.isdir(output_path):
        raise FileOptionError(f"output {output_path!r} is a folder; give a file")
    if not os.access(folder, os.W_OK):
        raise FileOptionError(f"output {output_path!r} lies in a folder that may not be written to; give another one")


def results(pipe: Any, reader: PipelineDataFormat, **arguments: Any) -> list[Any]:
    """Results of a pipeline for all inputs of a reader, those of one input behind those of the one before.

    Args:
        pipe: the pipeline; inputs of several columns are arguments of a call each.
        reader: gives the inputs.
        arguments: further arguments of every call.

    Raises:
        OptionError: the columns are not those of the pipeline's inputs.
    """
    found: list[Any] = []
    for output in _outputs(pipe, reader, arguments):
        found.extend([output] if isinstance(output, dict) else output)
    return found


def _outputs(pipe: Any, reader: PipelineDataFormat, arguments: dict[str, Any]) -> Iterator[Any]:
    """The output for each input; an error that is of one of them names its record."""
    index = None
    try:
        if not reader.is_multi_columns:
            yield from pipe(list(reader), **arguments)
            return
        _check_arguments(pipe, {*arguments, *(argument for argument, _ in reader.column)})
        entries = list(reader)
        for done, entry in enumerate(entries):
            index = done
            yield pipe(**{**arguments, **entry})
    except GptrioError as error:
        index = error.index if index is None else index
        if index is not None and not isinstance(error, (OptionError, OSError)):
            name_place(error, reader.place(index))
        raise


def _check_arguments(pipe: Any, arguments: set[str]) -> None:
    """Raise OptionError unless a pipeline has all of its inputs among the names of a call's arguments."""
    parameters = inspect.signature(pipe).parameters.values()
    needed = [one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if missing := [name for name in needed if name not in arguments]:
        raise OptionError(f"the pipeline reads {missing[0]!r}, which is none of the columns; pass one column only")


def as_json(data: Any, ensure_ascii: bool = False) -> str:
    """Results as JSON; numbers of numpy and torch are plain ones, and characters stay as they are unless told."""
    return json.dumps(data, ensure_ascii=ensure_ascii, default=lambda value: value.tolist())


def _as_json_lines(data: Any) -> str:
    return "".join(f"{as_json(record)}\n" for record in data)


def _as_csv(data: Any) -> str:
    """Results as CSV.

    Raises:
        OptionError: they have no names for columns.
    """
    if not all(isinstance(record, dict) for record in data):
        raise OptionError(NO_COLUMNS)
    names = dict.fromkeys(name for record in data for name in record)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    if names:
        writer.writeheader()
        writer.writerows(data)
    return text.getvalue()


_WRITERS: dict[str, Callable[[Any], str]] = {"json": as_json, "jsonl": _as_json_lines, "csv": _as_csv}


def _argument_and_column(name: str) -> tuple[str, str]:
    """The argument and the column of `argument=column`, or of a name for both."""
    argument, _, column = name.partition("=")
    return argument, column or argument
