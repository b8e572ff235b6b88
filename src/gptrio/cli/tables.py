"""Tables on standard output: aligned, in colour on a terminal, plain in a pipe, never cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

Cell = tuple[str, str]  # text and style


def print_table(rows: Iterable[Sequence[Cell]], right: Iterable[int] = ()) -> None:
    """Print rows with aligned columns, two spaces apart.

    Args:
        rows: a text and its style for each column.
        right: columns that are aligned to the right.
    """
    table, to_right = list(rows), set(right)
    columns = [_cells([text for text, _ in column]) for column in zip(*table, strict=True)]
    widths, sizes = list(map(max, columns)), zip(*columns, strict=True)
    console = Console(soft_wrap=True, highlight=False)
    codes = {style: _codes(console, style) for style in {style for row in table for _, style in row}}
    for row, own in zip(table, sizes, strict=True):
        shown, line = "", ""
        for i, (text, style) in enumerate(row):
            before, behind = codes[style] if text else ("", "")
            gap = " " * (widths[i] - own[i])
            shown += f"{gap}{before}{text}{behind}" if i in to_right else f"{before}{text}{behind}"
            if text.strip():
                line = shown  # without blank cells at the end
            shown += "  " if i in to_right else gap + "  "
        print(line)


def _cells(texts: Sequence[str]) -> list[int]:
    """How many columns of a terminal each text takes; rich takes twenty times as long for plain ones."""
    whole = "".join(texts)
    return list(map(len if whole.isascii() and whole.isprintable() else cell_len, texts))


def _codes(console: Console, style: str) -> tuple[str, str]:
    """What a console writes before and after a text in a style; rich takes ten times as long for each text again."""
    with console.capture() as captured:
        console.print(Text("x", style), end="")
    before, _, behind = captured.get().partition("x")
    return before, behind


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names, in colour on a terminal, and what they stand for."""
    print_table(((name, "cyan"), (value, "")) for name, value in facts)
