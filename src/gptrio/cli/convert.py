"""`gptrio convert`: a checkpoint of another form as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gptrio.cli import options
from gptrio.cli.errors import report_errors
from gptrio.cli.progress import progress
from gptrio.cli.text import print_json

Activation = Literal["gelu", "gelu_new"]


def convert(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="Folder or hub name, or a nanoGPT or minGPT file.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    overwrite: options.Overwrite = False,
    max_shard_size: options.MaxShardSize = "5GB",
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads of a minGPT model.", show_default="as the files say")
    ] = None,
    activation: Annotated[
        Activation | None, typer.Option(help="Of the MLP.", show_default="nanoGPT's gelu, minGPT's gelu_new")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name of a tokenizer to copy.", show_default="the source's")
    ] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Write a checkpoint as safetensors, once the written files give the same logits as the source.

    gptrio convert ./model-with-pytorch-bin ./model

    gptrio convert nanoGPT/out/ckpt.pt ./model --tokenizer openai-community/gpt2

    gptrio convert minGPT/out/adder/model.pt ./model --heads 3
    """
    with report_errors(context, verbose):
        from gptrio.interop.convert import convert as convert_checkpoint

        with progress("Converting"):
            done = convert_checkpoint(source, target, overwrite, max_shard_size, heads, activation, tokenizer)
        if as_json:
            files = [str(path) for path in done.files]
            print_json({"kind": done.kind, "difference": done.difference, "files": files})
            return
        proof = "equal" if done.difference == 0 else f"equal up to {done.difference:.0e}, the rounding of float64"
        print(*done.files, f"{done.kind}: logits before and after are {proof}", sep="\n")
