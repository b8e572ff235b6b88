"""What the house tests read: the checkout's own Python files, parsed once."""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "gptrio"


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the root of the checkout, text and syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """First part of the path below the package: the folder or file that DESIGN's import order names."""
        return Path(self.path).relative_to("src/gptrio").parts[0].removesuffix(".py")


@functools.cache
def sources(folder: str = "src") -> tuple[Source, ...]:
    """Every Python file below a folder of the checkout."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    texts = [(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in paths]
    return tuple(Source(path, text, ast.parse(text, path)) for path, text in texts)
