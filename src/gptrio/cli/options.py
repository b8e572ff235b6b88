"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from gptrio.cli.generate import Dtype, Quantization

Model = Annotated[str, typer.Option("--model", "-m", help="Folder or hub name of a model.")]
DtypeOption = Annotated[Dtype | None, typer.Option(help="Number format; auto is the file's.", show_default="auto")]
QuantizeOption = Annotated[Quantization | None, typer.Option(help="Load weights in 8 or 4 bits.", show_default=False)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...", show_default="a GPU if there is one")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show tracebacks of errors.")]
