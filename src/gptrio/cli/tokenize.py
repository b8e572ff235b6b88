"""`gptrio tokenize`: how a text becomes tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptrio.cli import options
from gptrio.cli.errors import report_errors
from gptrio.cli.options import DEFAULT_MODEL
from gptrio.cli.progress import progress
from gptrio.cli.text import print_json, read_text
from gptrio.errors import OptionError, counted

if TYPE_CHECKING:
    from gptrio.scoring.encoding import Encoded

_STYLES = ("black on cyan", "black on yellow", "black on green", "black on magenta")  # of neighbouring tokens


def tokenize(
    context: typer.Context,
    text: Annotated[
        str | None, typer.Argument(help="Text to split; - or nothing reads standard input.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", exists=True, dir_okay=False, help="Read the text from this file.")
    ] = None,
    model: options.Model = DEFAULT_MODEL,
    ids_only: Annotated[bool, typer.Option("--ids", help="Print the ids alone, on one line.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Show the tokens of a text: ids, bytes and places.

    gptrio tokenize "def hello_world():"

    cat story.txt | gptrio tokenize --ids

    gptrio tokenize --model EleutherAI/pythia-160m --json "größer"
    """
    with report_errors(context, verbose):
        if ids_only and as_json:
            raise OptionError("--ids and --json print the ids in two forms; give one of them")
        content = read_text(text, file, 'give one, as in: gptrio tokenize "def hello_world():", or --file, or a pipe')
        from gptrio import AutoTokenizer
        from gptrio.scoring.encoding import encode_text

        tokenizer = AutoTokenizer.from_pretrained(model)
        with progress("Tokenizing"):
            if ids_only:
                ids = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
            else:
                encoded = encode_text(tokenizer, content)
        if ids_only:
            print(*ids)
        elif as_json:
            print_json({"model": model, "text": content, "tokens": records(encoded)})
        else:
            show(encoded)


def records(encoded: Encoded) -> list[dict[str, object]]:
    """Id, spelling, bytes (as hexadecimal digits) and offsets of each token."""
    data = encoded.text.encode()
    columns = zip(encoded.ids, encoded.tokens, encoded.offsets, encoded.byte_offsets, strict=True)
    return [
        {"id": index, "token": token, "bytes": data[first:last].hex(" "), "start": start, "end": end}
        for index, token, (start, end), (first, last) in columns
    ]


def show(encoded: Encoded) -> None:
    """Print the text with its tokens in colours, if colours can be shown, and a table of the tokens."""
    from rich.console import Console
    from rich.text import Text

    from gptrio.cli.tables import print_table

    console = Console(soft_wrap=True, highlight=False)
    styles = [_STYLES[i % len(_STYLES)] for i in range(len(encoded.ids))]
    if console.is_terminal and not console.no_color:
        text = Text(encoded.text)
        for style, (start, end) in zip(styles, encoded.offsets, strict=True):
            text.stylize(style, start, end)
        console.print(text)
    table = [[(name, "bold") for name in ("id", "token", "place", "bytes")]]
    for row, style in zip(records(encoded), styles, strict=True):
        place = f"{row['start']}-{row['end']}"
        table.append([(str(row["id"]), ""), (str(row["token"]), style), (place, ""), (str(row["bytes"]), "")])
    print_table(table, right=[0])
    sizes = {"token": len(encoded.ids), "character": len(encoded.text), "byte": len(encoded.text.encode())}
    print(*(counted(number, noun) for noun, number in sizes.items()), sep=", ")
