"""`gptrio score`, `ppl` and `compare` as a shell runs them, on the model that ships with the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.integration.test_command_line import PROGRAM, gptrio, in_process

TEXT = "def main():\n    print('héllo')\n"


def on_a_terminal(*arguments: str, **variables: str) -> str:
    """Standard output of a command that believes it writes to a terminal."""
    import pty

    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", **variables}
    with subprocess.Popen([*PROGRAM, *arguments], stdout=follower, stderr=subprocess.PIPE, env=environment) as process:
        os.close(follower)
        shown = b""
        try:
            while part := os.read(leader, 1 << 16):
                shown += part
        except OSError:  # Linux's end of a pseudo-terminal
            pass
        assert process.wait(60) == 0, process.stderr.read()
    os.close(leader)
    return shown.decode()


@pytest.fixture
def file(tmp_path):
    (tmp_path / "text.py").write_text(TEXT, encoding="utf-8")
    return str(tmp_path / "text.py")


@pytest.mark.parametrize("command", ("score", "ppl", "compare", "eval"))
def test_help_shows_examples(command):
    done = in_process(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"gptrio {command} " in done.stdout.split("Options")[0].split("Usage", 1)[1]
    assert "--json" in done.stdout


def test_score_shows_each_token_with_bits_and_rank(file):
    done = in_process("score", file, "--top", "2")
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows, last = done.stdout.splitlines()
    assert head.split() == ["token", "bits", "rank"]
    assert rows[0].split()[0] == "def"
    assert "⏎␣␣␣" in done.stdout
    assert all(len(row.split()) == 7 for row in rows)
    assert last.startswith("log-probability -") and f"{len(rows)} tokens" in last
    assert "\x1b" not in done.stdout


def test_score_reads_a_pipe_and_writes_json():
    piped = gptrio("score", "--json", input=TEXT)
    assert (piped.returncode, piped.stderr) == (0, "")
    (text,) = json.loads(piped.stdout)["texts"]
    assert text["text"] == TEXT
    assert sum(token["log_prob"] for token in text["tokens"]) == pytest.approx(text["total"], abs=1e-4)
    assert [TEXT[token["start"] : token["end"]] for token in text["tokens"]][:2] == ["def", " main"]


def test_score_of_lines_words_and_a_context(file):
    lines = in_process("score", file, "--lines").stdout.splitlines()
    assert [line.split("\t")[-1] for line in lines] == ["text", "def main():", "    print('héllo')"]
    words = in_process("score", file, "--words").stdout.splitlines()
    assert [line.split()[0] for line in words[1:3]] == ["def", "main():"]
    after = json.loads(in_process("score", "--json", "--context", "import", input=" sys").stdout)
    assert after["texts"][0]["tokens"][0]["rank"] < 50


def test_score_writes_a_page_that_needs_nothing_else(file, tmp_path):
    page = tmp_path / "page.html"
    assert in_process("score", file, "--html", str(page)).returncode == 0
    written = page.read_text(encoding="utf-8")
    assert written.startswith("<!DOCTYPE html>")
    assert "bits, rank" in written
    assert "http" not in written and "<script" not in written
    assert "hé" not in written.replace("héllo", "") and "é" in written


def test_ppl_counts_each_token_once(file):
    found = json.loads(in_process("ppl", file, "--json", "--stride", "7").stdout)
    assert (found["stride"], found["context"], found["bytes"]) == (7, 512, len(TEXT.encode()))
    done = in_process("ppl", input=TEXT * 300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("perplexity ") and "stride 256 of a context of 512" in done.stdout


def test_compare_says_which_text_is_likelier():
    done = in_process("compare", "import os", "import banana")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("A is likelier: ")
    found = json.loads(in_process("compare", "import banana", "-", "--json", input="import os\n").stdout)
    assert found["likelier"] == "B"
    assert found["difference"] == pytest.approx(found["A"]["total"] - found["B"]["total"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("score", "nowhere.txt"), "there is no file nowhere.txt"),
        (("ppl", "nowhere.txt"), "there is no file nowhere.txt"),
        (("score", "-"), "the text is empty"),
        (("score", os.curdir), ". is a folder, not a file; give a file, or - for standard input"),
        (("ppl", os.devnull), "the text is empty"),
        (("score", "--words", "--lines"), "--words is for the table of one text, which --lines does not print"),
        (("score", "--words", "--json"), "--words is for the table of one text, which --json does not print"),
        (("score", __file__, "--html", __file__), "is the file with the text, which the page would replace"),
        (("compare", "a", ""), "a text is empty"),
        (("compare", "-", "-"), "only one of the texts"),
        (("compare", "a"), "Missing argument"),
        (("ppl", "--stride", "0"), "--stride"),
    ],
)
def test_an_impossible_command_line_is_one_line_and_code_2(arguments, message):
    done = in_process(*arguments, input="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gptrio: ") and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX shell")
def test_a_pipe_in_place_of_a_file_and_a_closed_input():
    command = f"{sys.executable} -m gptrio"
    script = f"{command} score --json <(printf 'import os'); {command} compare - a <&-; exit $?"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert [text["text"] for text in json.loads(done.stdout)["texts"]] == ["import os"]
    assert (done.returncode, done.stderr) == (2, "gptrio: standard input is closed; give a file or a pipe\n")


def test_a_text_past_the_context_names_ppl():
    done = in_process("score", input=TEXT * 300)
    assert done.returncode == 1
    assert "gptrio ppl scores longer texts" in done.stderr
    assert "stride must" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_colours_are_for_terminals_without_no_color(file):
    assert "\x1b[" in on_a_terminal("score", file)
    plain = on_a_terminal("compare", "import os", "import banana", NO_COLOR="1")
    assert "import" in plain
    assert "\x1b[3" not in plain and "\x1b[4" not in plain
