"""`gptrio ppl`: the perplexity of a text of any length."""

from __future__ import annotations

from typing import Annotated

import typer

from gptrio.cli import options, scoring
from gptrio.cli.errors import report_errors
from gptrio.cli.generate import load
from gptrio.cli.options import DEFAULT_MODEL
from gptrio.cli.progress import progress
from gptrio.cli.text import print_json
from gptrio.errors import counted


def ppl(
    context: typer.Context,
    file: scoring.TextFile = None,
    model: options.Model = DEFAULT_MODEL,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens from one window to the next; fewer give every token a longer past, for more computation.",
            show_default="half of the model's context",
        ),
    ] = None,
    dtype: options.DtypeOption = None,
    quantize: options.QuantizeOption = None,
    device: options.Device = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Compute the perplexity of a text of any length, by windows that overlap.

    gptrio ppl story.txt

    gptrio ppl story.txt --model gpt2 --stride 256

    cat *.py | gptrio ppl --json
    """
    with report_errors(context, verbose):
        text = scoring.read_file(file)
        loaded, tokenizer = load(model, device, dtype, None, quantize)
        from gptrio import perplexity

        with progress("Scoring") as on_progress:
            found = perplexity(loaded, tokenizer, text, stride, progress=on_progress)
        if as_json:
            print_json({"model": model, **found._asdict(), "bits_per_byte": found.bits_per_byte})
            return
        print(f"perplexity {found.perplexity:.4f}, {found.bits_per_byte:.4f} bits per byte")
        sizes = f"{counted(found.tokens, 'token')}, {counted(found.bytes, 'byte')}"
        print(f"{sizes}, stride {found.stride} of a context of {found.context}")
