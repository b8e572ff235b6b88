"""`gptrio env` tells what is installed."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version

import pytest

import gptrio
from gptrio.cli import env
from gptrio.cli.app import run
from gptrio.kernels.report import kernel_report


def test_table_has_one_fact_a_line_and_no_colour_in_a_pipe(capsys):
    assert run(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    facts = dict(line.split(maxsplit=1) for line in lines)
    assert facts["gptrio"] == gptrio.__version__
    assert facts["torch"] == version("torch")
    assert not any("\x1b" in line for line in lines)


def test_json_holds_the_same_facts(capsys):
    assert run(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["python"] == platform.python_version()
    assert {"processor", "instructions", "threads", "gpus"} <= facts.keys()


def test_kernels_are_told_for_each_kind_of_weight(capsys):
    assert run(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {f"{kind} products": how for kind, how in kernel_report().items()}.items() <= facts.items()


def test_a_library_that_is_absent_is_said_to_be(monkeypatch):
    monkeypatch.setattr(env, "OPTIONAL", ("no-such-library",))
    assert env.software()["no-such-library"] == "not installed"


@pytest.mark.parametrize("arguments", [(), ("--compile",)], ids=["facts", "compile"])
def test_an_unknown_way_of_compiling_is_refused(arguments, monkeypatch, capsys):
    monkeypatch.setenv("GPTRIO_COMPILE", "later")
    assert run(["env", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gptrio: GPTRIO_COMPILE='later' in the environment is not known")
