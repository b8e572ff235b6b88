"""Options as name=value, and messages from a keyboard."""

from __future__ import annotations

import io

import pytest
from transformers.commands.chat import ChatCommand

from gptrio.cli.assignments import parse_assignments
from gptrio.cli.chat import split_words
from gptrio.cli.chat_terminal import piped_lines
from gptrio.cli.generate import DEFAULT_MODEL
from gptrio.cli.keyboard import read_message
from gptrio.errors import OptionError

FLAGS = [
    "top_k=5",
    "do_sample=False",
    "use_cache=true",
    "temperature=0.7",
    "eos_token_id=[1,2]",
    "max_length=None",
    "bias=-2",
]


def test_values_are_those_of_transformers():
    assert parse_assignments(FLAGS) == ChatCommand.parse_generate_flags(None, FLAGS)


def test_values_that_transformers_cannot_read():
    assert parse_assignments(["epsilon_cutoff=3e-4", "stop_strings=a=b", "labels=x, y"]) == {
        "epsilon_cutoff": 3e-4,
        "stop_strings": "a=b",
        "labels": "x, y",
    }
    for word in ("top_k", "=3", "top-k=3"):
        with pytest.raises(OptionError, match="write it as name=value"):
            parse_assignments([word])


def test_the_model_comes_first_if_it_is_given():
    assert split_words([]) == (DEFAULT_MODEL, [])
    assert split_words(["top_k=5"]) == (DEFAULT_MODEL, ["top_k=5"])
    assert split_words(["./model", "top_k=5"]) == ("./model", ["top_k=5"])


def test_a_message_goes_on_after_a_backslash():
    lines = iter(["a\\", "b\\", "c", "d"])
    prompts: list[str] = []

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        return next(lines)

    assert read_message(ask) == "a\nb\nc"
    assert prompts == ["> ", ". ", ". "]
    assert read_message(ask) == "d"


def test_a_line_of_a_pipe_is_utf_8_and_has_its_place(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("höher\r\n".encode() + b"\n\xff\n")))
    lines = piped_lines()
    assert next(lines) == ("line 1 of standard input", "höher") and next(lines)[1] == ""
    with pytest.raises(OptionError, match=r"line 3 of standard input is not UTF-8 text \(byte 0\)"):
        next(lines)
