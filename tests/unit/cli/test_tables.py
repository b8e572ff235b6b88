"""Tables of the commands: aligned by the columns of a terminal, and as rich would print each cell."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.text import Text

from gptrio.cli.tables import print_table

ROWS = [
    [("id", "bold"), ("token", "bold"), ("place", "")],
    [("12", ""), ("größer東", "black on cyan"), ("0-3", "dim")],
    [("1", "red"), ("", "green"), ("1-2", "")],
    [("3", ""), ("a", "bold red"), ("", "green")],
]
LINES = [  # what these are, piece by piece, the first column to the right
    [("id", "bold"), "  ", ("token", "bold"), "     ", "place"],
    ["12", "  ", ("größer東", "black on cyan"), "  ", ("0-3", "dim")],
    [" ", ("1", "red"), " " * 12, "1-2"],
    [" 3", "  ", ("a", "bold red")],
]


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1"}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}], ids=str)
def test_cells_are_aligned_and_styled_as_rich_does_it(variables, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    print_table(ROWS, right=[0])
    printed = capsys.readouterr().out
    for line in LINES:
        Console(soft_wrap=True, highlight=False).print(Text.assemble(*line))
    assert printed == capsys.readouterr().out
    assert ("\x1b[" in printed) == bool(variables) and ("\x1b[31m" in printed) == (variables == {"FORCE_COLOR": "1"})
