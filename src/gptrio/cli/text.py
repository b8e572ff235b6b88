"""Decodes text files and arguments, and sets the encoding of output, independently of the locale."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from gptrio.errors import OptionError
from gptrio.utils.text import decode_text

_BYTE_ORDER_MARK = "\ufeff"
_ESCAPES = {code: ascii(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0))}


def decode_argument(text: str) -> str:
    """Return the text of an argument; Python has put surrogates where the locale could not decode its bytes.

    Raises:
        OptionError: the bytes behind it are not UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return decode_text(os.fsencode(text), "the argument")
    return text.removeprefix(_BYTE_ORDER_MARK)


def decode_arguments(texts: Sequence[str] | None) -> list[str] | None:
    """The texts of an argument that may be given several times; None if it was not given."""
    return [decode_argument(text) for text in texts or ()] or None


def read_text(text: str | None, file: Path | None, way_out: str) -> str:
    """Return the text from an argument, a file or standard input, unchanged except for a byte order mark.

    Args:
        text: the argument; "-", or None in a pipe, stands for standard input.
        file: to read instead.
        way_out: how to give a text, for the message where there is none.

    Raises:
        OptionError: none or two of them are given, the text is empty, or the bytes cannot be decoded.
    """
    if text is not None and file is not None:
        raise OptionError("a text and --file were both given; give one of them")
    if text is None and file is None and not is_piped():
        raise OptionError(f"no text; {way_out}")
    if file is not None:
        text = decode_text(file.read_bytes(), f"file {file}")
    elif text in (None, "-"):
        text = decode_text(input_bytes().read(), "standard input")
    else:
        text = decode_argument(text)
    if not text:
        raise OptionError("the text is empty; give it at least one character")
    return text


def check_file(file: Path, way_out: str) -> None:
    """Raise OptionError, with the way out, unless there is something at a path to read: a file, a pipe or a device."""
    if file.is_dir():
        raise OptionError(f"{file} is a folder, not a file; {way_out}")
    if not file.exists():
        raise OptionError(f"there is no file {file}; {way_out}")


def escaped(text: str) -> str:
    """A text whose control characters neither move the cursor nor end a column: a tab is shown as \\t, ESC as \\x1b."""
    return text.translate(_ESCAPES)


def is_piped() -> bool:
    """Whether standard input is a pipe or a file: neither a terminal nor closed."""
    return sys.stdin is not None and not sys.stdin.isatty()


def has_terminal() -> bool:
    """Whether somebody types on standard input and reads standard output."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def input_bytes() -> BinaryIO:
    """Standard input as bytes.

    Raises:
        OptionError: it is closed.
    """
    if sys.stdin is None:
        raise OptionError("standard input is closed; give a file or a pipe")
    return sys.stdin.buffer


def lines_of(text: str) -> list[str]:
    """The lines of a text without their ends; unlike `splitlines`, form feeds and the like do not end a line."""
    return [line.removesuffix("\n") for line in io.StringIO(text, newline=None)]


def set_output_encoding() -> None:
    """Write UTF-8 unless PYTHONIOENCODING or the terminal's locale sets another encoding.

    A character that the encoding lacks is written as "?" on standard output.
    """
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if _has_own_encoding(stream) else "utf-8", errors=errors)


def discard_output() -> None:
    """Let what is still to be written vanish: the reader of the pipe, perhaps of standard error too, is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    try:
        print(end="", file=sys.stderr, flush=True)
    except OSError:
        os.dup2(nowhere, sys.stderr.fileno())


def is_unicode(stream: Any) -> bool:
    """Whether a stream can show every character."""
    return codecs.lookup(getattr(stream, "encoding", None) or "utf-8").name.startswith("utf")


def print_json(value: Any, indent: int | None = None) -> None:
    """Print a value as JSON, escaped where standard output cannot show every character."""
    print(json.dumps(value, ensure_ascii=not is_unicode(sys.stdout), indent=indent), flush=True)


def _has_own_encoding(stream: io.TextIOWrapper) -> bool:
    asked = os.environ.get("PYTHONIOENCODING", "").partition(":")[0]
    return bool(asked) or (stream.isatty() and codecs.lookup(stream.encoding).name != "ascii")
