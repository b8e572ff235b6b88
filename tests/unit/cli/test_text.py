"""Text in and out of the commands: byte order marks, bytes of other encodings, and outputs that lack characters."""

from __future__ import annotations

import io
import json
import os
import sys
from shutil import copytree

import pytest

from gptrio.cli.app import run
from gptrio.cli.text import decode_argument, escaped, lines_of
from gptrio.errors import OptionError
from gptrio.utils.text import decode_text

TEXT = "größer 東 \U0001f600"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_without_its_byte_order_mark(encoding):
    assert decode_text(TEXT.encode(encoding), "it") == TEXT


def test_lines_end_where_editors_end_them():
    assert lines_of("a\x0cb\nc\u2028d\r\n\ne\rf") == ["a\x0cb", "c\u2028d", "", "e", "f"]


def test_only_control_characters_are_escaped():
    assert escaped("a\tb\x1b[0m\r\x00\x7f\x85 é\u2028東") == r"a\tb\x1b[0m\r\x00\x7f\x85 é" + "\u2028東"


@pytest.mark.parametrize(("data", "message"), [(b"ab\xff", "it is not UTF-8 text.*byte 2"), (b"\xff\xfea", "UTF-16")])
def test_bytes_that_are_no_text_are_named(data, message):
    with pytest.raises(OptionError, match=message):
        decode_text(data, "it")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_an_argument_is_text_under_any_locale(mark):
    as_ascii_locale = (mark + TEXT).encode().decode("ascii", "surrogateescape")
    assert decode_argument(mark + TEXT) == decode_argument(as_ascii_locale) == TEXT
    with pytest.raises(OptionError, match="not UTF-8"):
        decode_argument(os.fsdecode(b"\xe9"))


def test_a_mark_alone_is_an_empty_prompt(model_folder, tmp_path, capsys):
    (tmp_path / "mark").write_bytes(b"\xef\xbb\xbf")
    for arguments in (["--file", str(tmp_path / "mark")], ["\ufeff"]):
        assert run(["generate", "--model", model_folder, *arguments]) == 2
        assert "empty" in capsys.readouterr().err


@pytest.fixture
def output(monkeypatch):
    """Replace standard output by one of some encoding, and return what a command wrote to it as bytes."""

    def of(encoding: str, arguments: list[str], is_terminal: bool = False, **environment: str) -> bytes:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(stream, "isatty", lambda: is_terminal, raising=False)
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.delenv("PYTHONIOENCODING", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert run(arguments) == 0
        stream.flush()
        return stream.buffer.getvalue()

    return of


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_pipe_gets_utf_8_whatever_the_locale(output, model_folder, encoding):
    arguments = ["generate", TEXT, "--model", model_folder, "-n", "1"]
    assert output(encoding, arguments).startswith(TEXT.encode())


def test_a_terminal_gets_its_own_encoding(output, model_folder):
    arguments = ["generate", TEXT, "--model", model_folder, "-n", "1"]
    assert output("latin-1", arguments, is_terminal=True).startswith(b"gr\xf6\xdfer ? ?")
    assert output("ascii", arguments, is_terminal=True).startswith(TEXT.encode())


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "utf-16-le"])
def test_json_loses_no_character_in_any_encoding(output, model_folder, encoding):
    arguments = ["generate", TEXT, "--model", model_folder, "-n", "1", "--json"]
    written = output(encoding, arguments, PYTHONIOENCODING=encoding).decode(encoding)
    assert json.loads(written)["prompt"] == TEXT
    assert (TEXT in written) == encoding.startswith("utf")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_json_of_a_perplexity_is_escaped_only_where_characters_lack(output, model_folder, tmp_path, encoding):
    folder = copytree(model_folder, tmp_path / "größe")
    (tmp_path / "text").write_text("import os")
    arguments = ["ppl", str(tmp_path / "text"), "--json", "--model", str(folder)]
    written = output(encoding, arguments, PYTHONIOENCODING=encoding).decode(encoding)
    assert json.loads(written)["model"] == str(folder)
    assert ("größe" in written) == (encoding == "utf-8")
