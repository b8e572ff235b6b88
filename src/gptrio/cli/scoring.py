"""What the commands that score texts share: reading and colours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from gptrio.cli.text import check_file, escaped, read_text
from gptrio.errors import OptionError, counted

if TYPE_CHECKING:
    from gptrio.scoring.results import TextScore


def in_folder(file: Path | None) -> Path | None:
    """Return a file to write, once it is known that its folder is there: before a long computation, not after it.

    Raises:
        typer.BadParameter: there is no such folder.
    """
    if file is not None and not file.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {file.parent}; make it first")
    return file


TextFile = Annotated[
    Path | None, typer.Argument(help="Text to score; - or nothing reads standard input.", show_default=False)
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        help="Write a page with a heat map of surprisal to this file.",
        dir_okay=False,
        callback=in_folder,
    ),
]

# surprisal in bits from which on a token has a style; on a terminal only
_STYLES = ((12.0, "white on red"), (8.0, "black on bright_red"), (5.0, "black on yellow"), (2.5, "yellow"))
_SHOWN = str.maketrans(" \n\t\rĠĊĉč", "␣⏎⇥␍␣⏎⇥␍")  # white space, and how byte-level vocabularies spell it


def read_file(file: Path | None) -> str:
    """The text of a file, or of standard input for - or nothing in a pipe.

    Raises:
        OptionError: there is no such file or input, it is a folder, empty, or not UTF-8.
    """
    way_out = "give a file, or - for standard input"
    if file is None or str(file) == "-":
        return read_text(None if file is None else "-", None, way_out)
    check_file(file, way_out)
    return read_text(None, file, way_out)


def check_page(page: Path | None, file: Path | None) -> None:
    """Raise OptionError if a page would be written over the text that it shows."""
    if page is not None and file is not None and page.is_file() and file.is_file() and page.samefile(file):
        raise OptionError(f"--html {page} is the file with the text, which the page would replace; give another one")


def style_of(bits: float) -> str:
    """How a token of so many bits of surprisal looks on a terminal."""
    return next((style for least, style in _STYLES if bits >= least), "")


def shown(token: str) -> str:
    """A piece of text, or a token, with its white space visible and other control characters escaped."""
    return escaped(token.translate(_SHOWN))


def pieces(result: TextScore) -> list[str]:
    """The text of each token; the token itself where it is a part of a character."""
    spans = zip(result.offsets, result.byte_offsets, result.tokens, strict=True)
    return [
        piece if len((piece := result.text[start:end]).encode()) == last - first else token
        for (start, end), (first, last), token in spans
    ]


def print_text(text: Text) -> None:
    """Print on standard output, in colour on a terminal unless NO_COLOR is set."""
    Console(soft_wrap=True).print(text, highlight=False)


def summary(result: TextScore) -> str:
    """A text's numbers in a line."""
    return (
        f"log-probability {result.total:.3f} (natural logarithm), {counted(len(result.scored), 'token')}, "
        f"{result.mean:.3f} per token, {result.bits_per_byte:.3f} bits per byte"
    )


def as_dict(result: TextScore) -> dict[str, Any]:
    """A text's score for JSON."""
    found = []
    for i, (index, token) in enumerate(zip(result.ids, result.tokens, strict=True)):
        one: dict[str, Any] = {"id": index, "token": token, "start": result.offsets[i][0], "end": result.offsets[i][1]}
        one |= {"log_prob": result.log_probs[i], "rank": result.ranks[i]}
        if result.top:
            one["top"] = [top._asdict() for top in result.top[i]]
        found.append(one)
    totals = {"total": result.total, "mean": result.mean, "bits_per_byte": result.bits_per_byte}
    return {"text": result.text, **totals, "tokens": found}


def write_html(file: Path, results: dict[str, TextScore], title: str) -> None:
    """Write the heat map of results under their headings."""
    from gptrio.hub import write_text
    from gptrio.scoring.heat_map import heat_map

    write_text(file, heat_map(results, title))
