"""`gptrio download`: fetch a model from the hub, for use without a network."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptrio.cli import options
from gptrio.cli.errors import report_errors
from gptrio.cli.text import print_json

if TYPE_CHECKING:
    from gptrio.hub import HubOptions


def download(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Hub name of a model.", show_default=False, callback=options.no_file)],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.", show_default="the main branch")] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Fetch a model and its tokenizer from the hub into the cache, and print the folder.

    gptrio download EleutherAI/pythia-160m

    gptrio download EleutherAI/pythia-160m --revision step1000

    HF_HUB_OFFLINE=1 gptrio generate --model EleutherAI/pythia-160m "Once upon a time"
    """
    with report_errors(context, verbose):
        from gptrio.hub import HubOptions

        files = fetch(name, HubOptions(revision=revision))
        if as_json:
            sizes = {path.name: path.stat().st_size for path in files}
            print_json({"model": name, "folder": str(files[0].parent), "files": sizes})
        else:
            print(files[0].parent)


def fetch(name: str, options: HubOptions) -> list[Path]:
    """Download configuration, weights and tokenizer of one commit of a repository; return the files of its folder.

    A model that is already here, a folder or a packaged one, is left as it is.

    Raises:
        CheckpointNotFoundError: there is no such repository, or it has no configuration or weights.
        HubUnreachableError: the hub does not answer.
    """
    from gptrio import AutoTokenizer
    from gptrio.checkpoint.locate import locate_weights
    from gptrio.errors import CheckpointNotFoundError

    config = options.locate(name, "config.json")
    options = options.pinned_to(config)
    locate_weights(name, options=options)
    options.find(name, "generation_config.json")
    with suppress(CheckpointNotFoundError):  # a model need not have a tokenizer
        AutoTokenizer.from_pretrained(name, **options.as_kwargs())
    return sorted(path for path in config.parent.iterdir() if path.is_file())
