"""`gptrio merge`: an adapter into the weights of its model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptrio.cli import options
from gptrio.cli.errors import report_errors
from gptrio.cli.progress import progress
from gptrio.cli.text import print_json


def merge(
    context: typer.Context,
    model: options.ModelArgument,
    adapter: Annotated[str, typer.Argument(help="Folder or hub name of an adapter of PEFT.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", show_default=False)],
    overwrite: options.Overwrite = False,
    max_shard_size: options.MaxShardSize = "5GB",
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Merge an adapter into its model, in float32, once the written files give the logits of the two together.

    gptrio merge openai-community/gpt2 ./adapter --out ./merged
    """
    with report_errors(context, verbose):
        from gptrio.interop.merge import merge as merge_adapter

        with progress("Merging"):
            done = merge_adapter(model, adapter, out, overwrite, max_shard_size)
        if as_json:
            print_json({"difference": done.difference, "files": [str(path) for path in done.files]})
            return
        print(*done.files, f"logits before and after are equal up to {done.difference:.0e} of the largest", sep="\n")
