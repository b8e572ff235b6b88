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
    widths = [max(cell_len(text) for text, _ in column) for column in zip(*table, strict=True)]
    console = Console(soft_wrap=True, highlight=False)
    for row in table:
        pieces = []
        for i, (text, style) in enumerate(row):
            gap = " " * (widths[i] - cell_len(text))
            left, after = (gap, "") if i in to_right else ("", gap)
            pieces += [(left, ""), (text, style), (after + "  ", "")]
        while not pieces[-1][0].strip():
            pieces.pop()
        if console.color_system is None:  # rich takes ten times as long for the same lines
            print("".join(text for text, _ in pieces))
        else:
            console.print(Text.assemble(*pieces))


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names, in colour on a terminal, and what they stand for."""
    print_table(((name, "cyan"), (value, "")) for name, value in facts)
