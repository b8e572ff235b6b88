"""`gptrio tokenize`, `info` and `download`, as a shell runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptrio import AutoTokenizer, GPT2LMHeadModel
from gptrio.testing import byte_tokenizer, tiny_config
from tests.stub_hub import COMMIT, StubHub

TEXT = "def größer():\n"


def gptrio(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gptrio", *arguments], capture_output=True, text=True, check=False, **options
    )


def test_tokenize_shows_a_line_for_each_token_and_no_colour_in_a_pipe():
    done = gptrio("tokenize", input=TEXT)
    assert (done.returncode, done.stderr) == (0, "")
    header, *lines, summary = done.stdout.splitlines()
    assert header.split() == ["id", "token", "place", "bytes"]
    ids = AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2")(TEXT)["input_ids"]
    assert [int(line.split()[0]) for line in lines] == ids
    assert summary == f"{len(ids)} tokens, {len(TEXT)} characters, {len(TEXT.encode())} bytes"
    assert "\x1b" not in done.stdout


def test_tokenize_as_json_tells_bytes_and_places():
    tokens = json.loads(gptrio("tokenize", "--json", TEXT).stdout)["tokens"]
    assert bytes.fromhex(" ".join(token["bytes"] for token in tokens)).decode() == TEXT
    assert (tokens[0]["start"], tokens[-1]["end"]) == (0, len(TEXT))


def test_tokenize_refuses_no_text_at_all():
    done = gptrio("tokenize", "")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gptrio: the text is empty; give it at least one character\n"


@pytest.mark.parametrize("no_color", [True, False])
def test_tokenize_colours_the_text_on_a_terminal_only_without_no_color(no_color):
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm"} | ({"NO_COLOR": "1"} if no_color else {})
    shown = gptrio("tokenize", "def f", env=environment).stdout
    assert ("\x1b[30;46mdef\x1b[0m\x1b[30;43m f" in shown) == (not no_color)


def test_info_is_shown_without_loading_torch():
    code = (
        "import sys\nsys.argv = ['gptrio', 'info']\nfrom gptrio.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert "parameters         4,339,200" in lines
    assert lines[-1] == "False"


@pytest.mark.parametrize("command", ["tokenize", "info", "download"])
def test_help_teaches_by_example(command):
    done = gptrio(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"gptrio {command} " in done.stdout.split("Options", 1)[0].split("\n", 2)[2]


def test_a_missing_model_is_one_line():
    done = gptrio("info", "./no-such-folder")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1


def test_download_fetches_what_the_other_commands_need(tmp_path: Path):
    repository = tmp_path / "repository"
    GPT2LMHeadModel(tiny_config()).save_pretrained(repository)
    byte_tokenizer().save_pretrained(repository)
    with StubHub(repository).running() as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        environment = {**os.environ, **own, "HF_HUB_OFFLINE": "0"}
        done = gptrio("download", "someone/tiny", env=environment)
        assert done.stderr == ""
        again = gptrio("download", "someone/tiny", "--json", env=environment)
    assert (done.returncode, Path(done.stdout.strip()).name) == (0, COMMIT)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= json.loads(again.stdout)["files"].keys()
    offline = gptrio("info", "someone/tiny", env={**environment, "HF_HUB_OFFLINE": "1"})
    assert offline.returncode == 0
    refused = gptrio(
        "download", "someone/tiny", env={**environment, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    )
    assert refused.returncode == 1
    assert "HF_HUB_OFFLINE is set" in refused.stderr


def test_info_of_a_model_with_half_a_tokenizer_warns_and_goes_on(tmp_path: Path):
    GPT2LMHeadModel(tiny_config()).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    done = gptrio("info", str(tmp_path))
    assert done.returncode == 0
    assert done.stderr.startswith("gptrio: warning: the tokenizer is left out") and done.stderr.count("\n") == 1
    assert done.stdout.splitlines()[-1].split() == ["tokenizer", "none"]
