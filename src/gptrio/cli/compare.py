"""`gptrio compare`: which of two texts is likelier, token by token."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from gptrio.cli import options, scoring
from gptrio.cli.errors import report_errors
from gptrio.cli.generate import load
from gptrio.cli.options import DEFAULT_MODEL
from gptrio.cli.text import decode_argument, input_bytes, print_json
from gptrio.errors import OptionError
from gptrio.utils.text import decode_text

if TYPE_CHECKING:
    from gptrio.scoring.results import TextScore


def compare(
    context: typer.Context,
    first: Annotated[str, typer.Argument(metavar="A", help="A text; - reads standard input.", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help="Another text.", show_default=False)],
    model: options.Model = DEFAULT_MODEL,
    after: Annotated[
        str | None, typer.Option("--context", help="What precedes both without being scored.", show_default=False)
    ] = None,
    html: scoring.Html = None,
    dtype: options.DtypeOption = None,
    quantize: options.QuantizeOption = None,
    device: options.Device = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Show which of two texts a model finds likelier, token by token.

    gptrio compare "import os" "import banana"

    gptrio compare " x + 1" " y + 1" --context "def f(x): return" --html page.html
    """
    with report_errors(context, verbose):
        texts = read_texts(first, second)
        loaded, tokenizer = load(model, device, dtype, None, quantize)
        from gptrio.scoring.score import score_named

        results = score_named(loaded, tokenizer, texts, [decode_argument(after or "")] * 2, ["text A", "text B"])
        difference = results[0].total - results[1].total
        if html is not None:
            scoring.write_html(html, dict(zip("AB", results, strict=True)), f"A and B by {model}")
        if as_json:
            found: dict[str, Any] = {"model": model, "likelier": likelier(difference), "difference": difference}
            found |= {name: scoring.as_dict(result) for name, result in zip("AB", results, strict=True)}
            print_json(found)
            return
        for name, result in zip("AB", results, strict=True):
            scoring.print_text(surprisals(name, result))
        print(verdict(difference))


def read_texts(first: str, second: str) -> list[str]:
    """Both texts; one of them may be standard input.

    Raises:
        OptionError: one is empty or not UTF-8, or both are standard input, or it is closed.
    """
    if first == second == "-":
        raise OptionError("only one of the texts can be standard input; give the other one itself")
    texts = []
    for text in (first, second):
        whole = decode_text(input_bytes().read(), "standard input").rstrip("\n") if text == "-" else text
        texts.append(whole if text == "-" else decode_argument(whole))
    if not all(texts):
        raise OptionError("a text is empty; give it at least one character")
    return texts


def surprisals(name: str, result: TextScore) -> Text:
    """A text's total, its tokens, and below each its surprisal in bits."""
    from gptrio.scoring.heat_map import surprisal

    above, below = Text(f"{name}  "), "   "
    for piece, log_prob in zip(scoring.pieces(result), result.log_probs, strict=True):
        token, bits = scoring.shown(piece), "-" if log_prob is None else f"{surprisal(log_prob):.1f}"
        width = max(len(token), len(bits)) + 1
        above.append(token, style=scoring.style_of(0.0 if log_prob is None else surprisal(log_prob)) or "default")
        above.append(" " * (width - len(token)))
        below += f"{bits:<{width}}"
    numbers = f"\n   {scoring.summary(result)}\n"
    return above.append("\n").append(below.rstrip(), style="dim").append(numbers)


def likelier(difference: float) -> str | None:
    """ "A" or "B", or None if both are as probable."""
    return None if difference == 0 else "A" if difference > 0 else "B"


def verdict(difference: float) -> str:
    """Which text is likelier, and by how much."""
    name = likelier(difference)
    if name is None:
        return "A and B are equally likely"
    gap = abs(difference)
    if gap < math.log(100):
        factor = f"{math.exp(gap):.3g}"
    else:
        factor = f"{math.exp(gap):,.0f}" if gap < math.log(1e6) else f"10^{gap / math.log(10):.0f}"
    return f"{name} is likelier: {factor} times as probable (difference of log-probabilities {gap:.3f})"
