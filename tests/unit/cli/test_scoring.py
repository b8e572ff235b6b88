"""`gptrio score`, `ppl` and `compare`: what they print and refuse; tests/integration runs them as a shell does."""

from __future__ import annotations

import pytest

from gptrio.cli.app import run


@pytest.fixture
def command(model_folder, stdin, capsys):
    """Run a command over standard input on a model whose tokens are bytes; returns exit code, output and errors."""

    def execute(text: str, *arguments: str) -> tuple[int, str, str]:
        stdin(text.encode())
        code = run([*arguments, "--model", model_folder])
        return (code, *capsys.readouterr())

    return execute


def test_lines_keep_the_numbers_of_the_file(command, tmp_path):
    code, output, error = command(f"\nimport os\n\n{'x' * 65}\n", "score", "--lines")
    assert (code, output) == (1, "")
    assert error.startswith("gptrio: line 4 takes 65 tokens, but the model reads 64 at once; gptrio ppl scores longer")
    page = tmp_path / "page.html"
    assert command("\nimport os\n\nx = 1\n", "score", "--lines", "--html", str(page))[0] == 0
    headings = [part.split("</h2>")[0] for part in page.read_text(encoding="utf-8").split("<h2>")[1:]]
    assert headings == ["Line 2", "Line 4"]


def test_lines_that_are_all_empty_are_refused(command):
    expected = "gptrio: every line of the text is empty; give at least one with a character\n"
    assert command("\n\r\n\n", "score", "--lines") == (2, "", expected)


def test_compare_names_the_text_in_an_error(command):
    code, output, error = command("a\n", "compare", "-", "x" * 65)
    assert (code, output) == (1, "")
    assert error.startswith("gptrio: text B takes 65 tokens")


def test_one_thing_is_singular(command, tmp_path):
    page = tmp_path / "page.html"
    assert ", 1 token, " in command("a", "score", "--html", str(page))[1].splitlines()[-1]
    assert ", 1 token, " in page.read_text(encoding="utf-8")
    assert command("a", "ppl")[1].splitlines()[1] == "1 token, 1 byte, stride 32 of a context of 64"
    assert command("aé", "ppl")[1].splitlines()[1] == "3 tokens, 3 bytes, stride 32 of a context of 64"
    assert command("", "compare", "a", "b")[1].count(", 1 token, ") == 2


def test_control_characters_are_escaped(command):
    text = "a\tb\x1b[31m\x7f\x9b"
    assert command(text, "score", "--lines")[1].splitlines()[1].split("\t")[3:] == [r"a\tb\x1b[31m\x7f\x9b"]
    for arguments in (("score", "-"), ("score", "-", "--words"), ("compare", "-", "b")):
        code, shown, _ = command(text, *arguments)
        assert code == 0
        assert r"\x1b" in shown and r"\x7f" in shown
        assert not set(shown.replace("\n", "")) & {*map(chr, range(32)), "\x7f", "\x9b"}
