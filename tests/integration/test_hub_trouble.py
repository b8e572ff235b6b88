"""A hub that hangs, refuses, answers with errors or dies on the way: what is said, how soon, and what is used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gptrio import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from tests.cases import first
from tests.stub_hub import COMMIT, StubHub
from tests.tiny_tokenizers import write_gpt2

LOAD = """
import logging, sys, warnings
logging.basicConfig(level=logging.WARNING, format="LOG %(name)s %(message)s")
warnings.simplefilter("always")
warnings.showwarning = lambda message, *rest, **options: print("WARNING", message)
import gptrio
from gptrio import AutoTokenizer
try:
    loaded = [AutoTokenizer.from_pretrained("someone/tiny")]
    if not sys.argv[1:]:
        loaded += [gptrio.AutoModelForCausalLM.from_pretrained("someone/tiny")]
        print("generates", loaded[1].generation_config.max_new_tokens)
    print("LOADED", *[type(part).__name__ for part in loaded])
except Exception as error:
    print(type(error).__name__, error)
"""

WHOLE = ["generates 7", "LOADED GPT2TokenizerFast GPT2LMHeadModel"]


class Run(NamedTuple):
    """What a program printed, and the seconds that it took."""

    lines: list[str]
    seconds: float


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    AutoTokenizer.from_pretrained(write_gpt2(folder), tokenizer_type="gpt2").save_pretrained(folder)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=501, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def hub(repository: Path) -> Iterator[StubHub]:
    with StubHub(repository).running() as stub:
        yield stub


def load(url: str, cache: Path, *arguments: str, **variables: str) -> Run:
    """Run `LOAD` against a hub, with a second for each of its answers; with an argument, for the tokenizer alone."""
    own = {"HF_ENDPOINT": url, "HF_HUB_CACHE": str(cache), "HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DISABLE_XET": "1"}
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"} | own | variables
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        timeout=60,
    )
    assert "LOG" not in done.stderr, done.stderr
    return Run(done.stdout.splitlines(), time.monotonic() - begun)


@pytest.fixture(scope="module")
def filled(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that a load from a healthy hub has filled; to be copied."""
    folder = tmp_path_factory.mktemp("filled")
    with StubHub(repository).running() as hub:
        assert load(hub.url, folder).lines == WHOLE
    return folder


@pytest.fixture
def cache(filled: Path, tmp_path: Path) -> Path:
    """A copy of the filled cache."""
    return shutil.copytree(filled, tmp_path / "cache", symlinks=True)


REASONS = {
    "hangs": "cannot be reached (no answer in time)",
    "503": "answered 503",
    "429": "answered 429",
    "500": "answered 500",
}


@pytest.mark.parametrize("mood", first(REASONS, 3))
def test_a_hub_that_does_not_serve_is_named_at_once(hub: StubHub, tmp_path: Path, mood: str) -> None:
    hub.mood = mood
    run = load(hub.url, tmp_path, "tokenizer")
    (line,) = run.lines
    assert line.startswith("HubUnreachableError cannot get tokenizer_config.json of 'someone/tiny' (revision main): ")
    assert REASONS[mood] in line and line.endswith("to use what the hub's cache holds")
    assert len(hub.asked) == 1 and run.seconds < 20  # one question, no second try


def test_a_hub_that_refuses_connections_is_named_at_once(tmp_path: Path) -> None:
    (line,) = load("http://127.0.0.1:9", tmp_path, "tokenizer").lines
    assert "the hub at 127.0.0.1:9 cannot be reached (no connection)" in line


@pytest.mark.parametrize("mood", ["401", "403"])
def test_a_repository_that_may_not_be_read_says_so(hub: StubHub, tmp_path: Path, mood: str) -> None:
    hub.mood = mood
    (line,) = load(hub.url, tmp_path, "tokenizer").lines
    assert line.startswith("CheckpointNotFoundError") and mood in line and "token=" in line


@pytest.mark.parametrize("mood", first(["hangs", "503", "refuses"]))
def test_a_complete_cache_is_used_with_one_warning(hub: StubHub, cache: Path, mood: str) -> None:
    hub.mood = mood
    run = load("http://127.0.0.1:9" if mood == "refuses" else hub.url, cache)
    warning, *loaded = run.lines
    assert warning.startswith("WARNING the hub at") and "cached files of 'someone/tiny' are used" in warning
    assert loaded == WHOLE


def test_files_of_a_pinned_commit_are_not_asked_for_again(hub: StubHub, cache: Path) -> None:
    hub.asked.clear()
    assert load(hub.url, cache).lines == WHOLE
    assert sorted(set(hub.asked)) == ["HEAD config.json", "HEAD tokenizer_config.json"]
    assert COMMIT in {path.name for path in cache.rglob("snapshots/*")}


@pytest.mark.parametrize("answers", first([7, 2, 15]))
def test_a_hub_that_dies_between_two_files_leaves_nothing_out(hub: StubHub, tmp_path: Path, answers: int) -> None:
    hub.last_answers = answers
    (line,) = load(hub.url, tmp_path).lines
    assert line.startswith("HubUnreachableError") and "someone/tiny" in line
    hub.last_answers = None
    assert load(hub.url, tmp_path).lines == WHOLE


def test_a_file_cut_short_is_not_taken(hub: StubHub, tmp_path: Path) -> None:
    hub.mood = "cuts"
    (line,) = load(hub.url, tmp_path, "tokenizer").lines
    assert line.startswith("HubUnreachableError") and "broke off" in line
    hub.mood = "well"
    assert load(hub.url, tmp_path, "tokenizer").lines == ["LOADED GPT2TokenizerFast"]


def test_named_chat_templates_come_from_the_hub_and_then_from_its_cache(tmp_path: Path) -> None:
    folder, templates = tmp_path / "repository", {"default": "{{ a }}", "tool_use": "{{ b }}"}
    tokenizer = AutoTokenizer.from_pretrained(write_gpt2(folder), tokenizer_type="gpt2", chat_template=templates)
    tokenizer.save_pretrained(folder)
    show = "from gptrio import AutoTokenizer as A; print(A.from_pretrained('someone/tiny').chat_template)"
    with StubHub(folder).running() as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        for offline in ("0", "1"):
            environment = {**os.environ, **own, "HF_HUB_OFFLINE": offline}
            done = subprocess.run(
                [sys.executable, "-c", show], capture_output=True, text=True, check=True, env=environment
            )
            assert done.stdout.strip() == str(templates)


def test_offline_mode_asks_nobody(hub: StubHub, cache: Path) -> None:
    hub.asked.clear()
    assert load(hub.url, cache, HF_HUB_OFFLINE="1").lines == WHOLE
    assert hub.asked == []
    (line,) = load(hub.url, cache / "empty", "tokenizer", HF_HUB_OFFLINE="1").lines
    assert line.startswith("CheckpointNotFoundError")
