"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

DEFAULT_MODEL = "gptrio/stdlib-gpt2"

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["int8", "int4", "nf4", "fp4"]


def no_file(name: str | None) -> str | None:
    """Return the name of a model, which may be a folder's.

    Raises:
        typer.BadParameter: it is a file's.
    """
    if name is not None and Path(name).is_file():
        raise typer.BadParameter(f"{name!r} is a file; give the folder that holds it, or the name of a hub repository")
    return name


Model = Annotated[str, typer.Option("--model", "-m", help="Folder or hub name of a model.", callback=no_file)]
ModelArgument = Annotated[str, typer.Argument(help="Folder or hub name of a model.", callback=no_file)]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        help="Number format; auto is the file's.", show_default="auto, but float32 on a processor without units for it"
    ),
]
QuantizeOption = Annotated[
    Quantization | None,
    typer.Option(
        help="Load weights in 8 or 4 bits; nf4 and fp4 need bitsandbytes.", show_default="as the checkpoint has them"
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...", show_default="a GPU if there is one")]
Attention = Annotated[str | None, typer.Option(help="eager or sdpa.", show_default="sdpa")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")]
MaxShardSize = Annotated[str, typer.Option(help="Largest file, such as 500MB.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show tracebacks of errors.")]

Temperature = Annotated[
    float | None, typer.Option(help="Above 1 more varied, below 1 more predictable.", show_default="the model's")
]
TopK = Annotated[
    int | None, typer.Option(min=0, help="Choose among the k likeliest tokens; 0 for all.", show_default="the model's")
]
TopP = Annotated[
    float | None,
    typer.Option(help="Choose among the likeliest tokens of this total probability.", show_default="the model's"),
]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always take the likeliest token.")]
Seed = Annotated[int | None, typer.Option(help="Make the choice repeatable.", show_default=False)]
Continuations = Annotated[int, typer.Option("--num-return-sequences", min=1, help="How many continuations.")]
Stop = Annotated[list[str] | None, typer.Option(help="End after this text; may be given several times.")]
