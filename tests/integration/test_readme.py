"""README's tour runs as it stands."""

from __future__ import annotations

import re

import pytest

from gptrio.cli.app import LazyGroup
from tests.architecture.source import ROOT


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_python_of_the_tour_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)
    assert (tmp_path / "small-gpt2" / "model.safetensors").exists()
    assert capsys.readouterr().out.startswith("def read_lines(path):")


def shell_commands() -> list[str]:
    """What follows `gptrio` in each shell line of the README."""
    lines = (line for block in blocks("sh") for line in block.splitlines())
    return [line.rsplit("gptrio ", 1)[1] for line in lines if "gptrio " in line]


@pytest.mark.parametrize("command", shell_commands())
def test_options_on_the_command_lines_of_the_readme_exist(command):
    parser = LazyGroup().get_command(None, command.split()[0])
    known = {option for parameter in parser.params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", command)) <= known
