"""Tables on standard output: aligned, in colour on a terminal, plain in a pipe, never cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

Cell = str | Text


def print_table(rows: Iterable[Sequence[Cell]], header: Sequence[str] = (), right: Iterable[int] = ()) -> None:
    """Print rows with aligned columns, two spaces apart.

    Args:
        rows: a cell for each column, text or styled text.
        header: names of the columns, if they are shown.
        right: columns that are aligned to the right.
    """
    table = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    if header:
        table.insert(0, [Text(name, style="bold") for name in header])
    widths = [max((row[i].cell_len for row in table if i < len(row)), default=0) for i in range(max(map(len, table)))]
    console, columns = Console(soft_wrap=True, highlight=False), set(right)
    for row in table:
        for i, cell in enumerate(row):
            gap = " " * (widths[i] - cell.cell_len)
            row[i] = Text(gap) + cell if i in columns else cell + Text(gap)
        line = Text("  ").join(row)
        line.rstrip()
        console.print(line)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names, in colour on a terminal, and what they stand for."""
    print_table((Text(name, style="cyan"), value) for name, value in facts)
