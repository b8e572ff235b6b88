"""`gptrio tokenize`, `info` and `download`, as a shell runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptrio import AutoTokenizer, GPT2LMHeadModel
from gptrio.testing import byte_tokenizer, tiny_config
from tests.integration.test_command_line import gptrio, in_process
from tests.stub_hub import COMMIT, StubHub
from tests.terminal import Screen

TEXT = "def größer():\n"


def test_tokenize_shows_a_line_for_each_token_and_no_colour_in_a_pipe():
    done = gptrio("tokenize", input=TEXT)
    assert (done.returncode, done.stderr) == (0, "")
    header, *lines, summary = done.stdout.splitlines()
    assert header.split() == ["id", "token", "place", "bytes"]
    ids = AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2")(TEXT)["input_ids"]
    assert [int(line.split()[0]) for line in lines] == ids
    assert summary == f"{len(ids)} tokens, {len(TEXT)} characters, {len(TEXT.encode())} bytes"
    assert gptrio("tokenize", "def").stdout.splitlines()[-1] == "1 token, 3 characters, 3 bytes"
    assert "\x1b" not in done.stdout


def test_tokenize_as_json_tells_bytes_and_places():
    tokens = json.loads(gptrio("tokenize", "--json", TEXT).stdout)["tokens"]
    assert bytes.fromhex(" ".join(token["bytes"] for token in tokens)).decode() == TEXT
    assert (tokens[0]["start"], tokens[-1]["end"]) == (0, len(TEXT))


def test_tokenize_prints_ids_alone():
    ids = AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2")(TEXT)["input_ids"]
    assert gptrio("tokenize", "--ids", TEXT).stdout == " ".join(map(str, ids)) + "\n"
    refused = in_process("tokenize", "--ids", "--json", TEXT)
    assert (refused.returncode, refused.stdout) == (2, "") and "give one of them" in refused.stderr


def test_tokenize_refuses_no_text_at_all():
    done = in_process("tokenize", "")
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
    done = in_process(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"gptrio {command} " in done.stdout.split("Options", 1)[0].split("\n", 2)[2]


def test_a_missing_model_is_one_line():
    done = in_process("info", "./no-such-folder")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A model of more than a megabyte, and its tokenizer."""
    folder = tmp_path_factory.mktemp("repository")
    GPT2LMHeadModel(tiny_config(hidden_size=128)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def hub(repository, tmp_path) -> Iterator[tuple[StubHub, dict[str, str]]]:
    """A hub with that model, and the environment of a program that asks it and has an empty cache."""
    with StubHub(repository).running() as stub:
        own = {"HF_ENDPOINT": stub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        yield stub, {**os.environ, **own, "HF_HUB_OFFLINE": "0"}


def test_download_fetches_what_the_other_commands_need(hub, tmp_path: Path):
    _, environment = hub
    done = gptrio("download", "someone/tiny", env=environment)
    assert done.stderr == ""
    again = gptrio("download", "someone/tiny", "--json", env=environment)
    assert (done.returncode, Path(done.stdout.strip()).name) == (0, COMMIT)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= json.loads(again.stdout)["files"].keys()
    offline = gptrio("info", "someone/tiny", env={**environment, "HF_HUB_OFFLINE": "1"})
    assert (offline.returncode, offline.stderr) == (0, "") and "parameters         437,888" in offline.stdout
    refused = gptrio(
        "download", "someone/tiny", env={**environment, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    )
    assert refused.returncode == 1
    assert "HF_HUB_OFFLINE is set" in refused.stderr


def test_info_reads_headers_on_the_hub_and_never_the_weights(hub, repository):
    stub, environment = hub
    done = gptrio("info", "someone/tiny", "--json", env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    here = json.loads(gptrio("info", str(repository), "--json").stdout)
    assert {**found, "model": "", "files": {}, "downloaded": True} == {**here, "model": "", "files": {}}
    size = (repository / "model.safetensors").stat().st_size
    assert found["files"] == {"model.safetensors": size} and not found["downloaded"]
    assert [request for request in stub.asked if "safetensors" in request] == ["GET model.safetensors"]
    assert stub.sent["model.safetensors"] <= 100_000 < size

    offline = gptrio("info", "someone/tiny", env={**environment, "HF_HUB_OFFLINE": "1"})
    assert offline.returncode == 0 and "parameters         unknown" in offline.stdout
    assert offline.stderr.startswith("gptrio: warning: the weights are left out") and offline.stderr.count("\n") == 1
    assert "not in the hub's cache and HF_HUB_OFFLINE is set" in offline.stderr


@pytest.mark.parametrize("has_header", [True, False], ids=["shards", "torch file"])
def test_info_of_other_weight_files_on_the_hub(has_header, repository, tmp_path):
    model = GPT2LMHeadModel.from_pretrained(repository)
    folder = tmp_path / "other"
    model.save_pretrained(folder, max_shard_size="500KB" if has_header else "5GB", safe_serialization=has_header)
    with StubHub(folder).running() as stub:
        own = {"HF_ENDPOINT": stub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        done = gptrio("info", "someone/tiny", env={**os.environ, **own})
    assert done.returncode == 0
    assert ("parameters         437,888" in done.stdout) == has_header
    assert ("gptrio download someone/tiny" in done.stderr) == (not has_header)
    assert done.stdout.count(", on the hub)") == (5 if has_header else 1)
    assert sum(sent for name, sent in stub.sent.items() if name.endswith((".safetensors", ".bin"))) <= 5 * 100_000
    assert "pytorch_model.bin" not in stub.sent


def test_info_refuses_a_damaged_header_on_the_hub(tmp_path):
    GPT2LMHeadModel(tiny_config()).save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with StubHub(tmp_path / "model").running() as stub:
        own = {"HF_ENDPOINT": stub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        done = gptrio("info", "someone/tiny", env={**os.environ, **own})
    assert (done.returncode, done.stdout) == (1, "")
    assert "model.safetensors of 'someone/tiny' is not a whole safetensors file" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_terminal_shows_how_far_it_is(hub, tmp_path):
    environment = {**hub[1], "HF_HUB_DISABLE_PROGRESS_BARS": "0"}
    (tmp_path / "text.txt").write_text("def f():\n" * 200, encoding="utf-8")
    for arguments, shown, end in (
        (("tokenize", "--ids", "--file", str(tmp_path / "text.txt")), "Tokenizing", r"\d+ \d+ \d+"),
        (("info", "someone/tiny"), "Reading", "chat template"),
        (("download", "someone/tiny"), r"model.safetensors: +100%", COMMIT),
    ):
        screen = Screen(*arguments, **environment)
        screen.wait_for(shown)
        screen.wait_for(end)
        assert screen.end() == 0


def test_info_of_a_model_with_half_a_tokenizer_warns_and_goes_on(tmp_path: Path):
    GPT2LMHeadModel(tiny_config()).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    done = gptrio("info", str(tmp_path))
    assert done.returncode == 0
    assert done.stderr.startswith("gptrio: warning: the tokenizer is left out") and done.stderr.count("\n") == 1
    assert done.stdout.splitlines()[-1].split() == ["tokenizer", "none"]
