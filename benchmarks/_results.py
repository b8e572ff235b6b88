"""What all benchmarks share: a table on the screen, and a JSON file outside the source tree."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gptrio import __version__

LIBRARIES = ("torch", "transformers")


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose first column is names and whose others are numbers."""
    table = Table(*head, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def save(name: str, results: dict[str, Any], path: Path | None = None) -> None:
    """Write results with the machine and versions they were measured on, and say where.

    Args:
        name: of the benchmark.
        results: what was measured.
        path: file to write; by default `NAME-TIME.json` in $GPTRIO_RESULTS, or in ~/.cache/gptrio/results.
    """
    folder = Path(os.environ.get("GPTRIO_RESULTS", Path.home() / ".cache" / "gptrio" / "results"))
    path = path or folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"platform": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()}
    versions = {"gptrio": __version__, **{library: version(library) for library in LIBRARIES}}
    facts = {"benchmark": name, "machine": machine, "versions": versions}
    path.write_text(json.dumps({**facts, **results}, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")
