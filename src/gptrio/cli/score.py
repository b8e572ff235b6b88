"""`gptrio score`: the probability of every token of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from gptrio.cli import options, scoring
from gptrio.cli.errors import report_errors
from gptrio.cli.generate import load
from gptrio.cli.options import DEFAULT_MODEL
from gptrio.cli.progress import progress
from gptrio.cli.text import decode_argument, escaped, lines_of, print_json
from gptrio.errors import OptionError

if TYPE_CHECKING:
    from gptrio.scoring.results import TextScore


def score(
    context: typer.Context,
    file: scoring.TextFile = None,
    model: options.Model = DEFAULT_MODEL,
    after: Annotated[
        str | None, typer.Option("--context", help="What precedes the text without being scored.", show_default=False)
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Score each line as a text of its own.")] = False,
    words: Annotated[bool, typer.Option("--words", help="Show words rather than tokens.")] = False,
    top: Annotated[int, typer.Option(min=0, help="Show so many of the likeliest tokens of each position.")] = 0,
    html: scoring.Html = None,
    dtype: options.DtypeOption = None,
    quantize: options.QuantizeOption = None,
    device: options.Device = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Show how probable a model finds each token of a text.

    gptrio score story.txt

    echo "import os" | gptrio score --top 3

    gptrio score sentences.txt --lines --json
    """
    with report_errors(context, verbose):
        if words and (lines or as_json):
            other = "lines" if lines else "json"
            raise OptionError(f"--words is for the table of one text, which --{other} does not print; leave it out")
        scoring.check_page(html, file)
        text = scoring.read_file(file)
        texts = lines_by_name(text) if lines else {"the text": text}
        loaded, tokenizer = load(model, device, dtype, None, quantize)
        from gptrio.scoring.score import score_named

        before = [decode_argument(after or "")] * len(texts)
        with progress("Scoring") as on_progress:
            results = score_named(
                loaded, tokenizer, list(texts.values()), before, list(texts), top, progress=on_progress
            )
        if html is not None:
            headings = [name.removeprefix("the ").capitalize() for name in texts]
            scoring.write_html(html, dict(zip(headings, results, strict=True)), f"Surprisal by {model}")
        if as_json:
            found = {"model": model, "texts": [scoring.as_dict(result) for result in results]}
            print_json(found)
        elif lines:
            print("log-prob\ttokens\tbits/byte\ttext")
            for result in results:
                print(f"{result.total:.3f}\t{len(result.scored)}\t{result.bits_per_byte:.3f}\t{escaped(result.text)}")
        else:
            scoring.print_text(word_table(results[0]) if words else token_table(results[0]))
            print(scoring.summary(results[0]))


def lines_by_name(text: str) -> dict[str, str]:
    """The lines of a text that are not empty, by names that count all lines from 1.

    Raises:
        OptionError: all lines are empty.
    """
    found = {f"line {number}": line for number, line in enumerate(lines_of(text), start=1) if line}
    if not found:
        raise OptionError("every line of the text is empty; give at least one with a character")
    return found


def token_table(result: TextScore) -> Text:
    """A line for each token: the token, its surprisal in bits, its rank, and the likeliest ones if they are known."""
    from gptrio.scoring.heat_map import surprisal

    tokens = [scoring.shown(piece) for piece in scoring.pieces(result)]
    width = max(5, *map(len, tokens))
    table = Text(f"{'token':<{width}}    bits    rank\n", style="bold")
    for i, (token, log_prob) in enumerate(zip(tokens, result.log_probs, strict=True)):
        bits = None if log_prob is None else surprisal(log_prob)
        table.append(token, style=scoring.style_of(bits or 0.0) or "default")
        numbers = f"{'-':>8}{'-':>8}" if bits is None else f"{bits:8.2f}{result.ranks[i]:8}"
        table.append(" " * (width - len(token)) + numbers, style="not bold default")
        for other in result.top[i] if result.top else ():
            table.append(f"  {scoring.shown(other.token)} {surprisal(other.log_prob):.2f}", style="not bold dim")
        table.append("\n")
    table.right_crop(1)
    return table


def word_table(result: TextScore) -> Text:
    """A line for each word: the word and its surprisal in bits."""
    from gptrio.scoring.heat_map import surprisal

    words = [(escaped(word.text), word.log_prob) for word in result.words()]
    width = max(4, *(len(word) for word, _ in words))
    table = Text(f"{'word':<{width}}    bits", style="bold")
    for word, log_prob in words:
        bits = None if log_prob is None else surprisal(log_prob)
        table.append("\n").append(word, style=scoring.style_of(bits or 0.0) or "default")
        number = f"{'-':>8}" if bits is None else f"{bits:8.2f}"
        table.append(" " * (width - len(word)) + number, style="not bold default")
    return table
