"""`gptrio chat`: a conversation with a model in the terminal, or over a pipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gptrio.cli import options
from gptrio.cli.assignments import parse_assignments
from gptrio.cli.errors import report_errors
from gptrio.cli.generate import DEFAULT_MODEL, fix_seed, load
from gptrio.cli.text import decode_argument


def chat(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Folder or hub name of a model.", show_default=DEFAULT_MODEL),
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=VALUE", help="Options of generation.", show_default=False)
    ] = None,
    system_prompt: Annotated[
        str | None, typer.Option(help="First message, which says how to answer.", show_default=False)
    ] = None,
    load_from: Annotated[
        Path | None, typer.Option("--load", help="Go on with a chat that !save wrote.", show_default=False)
    ] = None,
    save_folder: Annotated[Path, typer.Option(help="Where !save writes chats without a name.")] = Path("chat_history"),
    seed: Annotated[int | None, typer.Option(help="Make the answers repeatable.", show_default=False)] = None,
    dtype: options.DtypeOption = None,
    quantize: options.QuantizeOption = None,
    device: options.Device = None,
    verbose: options.Verbose = False,
) -> None:
    """Chat with a model. Ctrl-C ends an answer, !help lists commands, !exit or Ctrl-D ends the chat.

    gptrio chat

    gptrio chat ./my-model max_new_tokens=100 do_sample=False

    gptrio chat --load chat.json temperature=0.7

    echo "What is a list?" | gptrio chat
    """
    from gptrio.kernels.cpu_decode.compilation import compile_mode

    with report_errors(context, verbose):
        name, assignments = split_words([*filter(None, [model]), *(arguments or ())])
        given = parse_assignments(assignments)
        compile_mode()  # an unknown one is refused before a model is loaded
        loaded, tokenizer = load(name, device, dtype, None, quantize)
        fix_seed(seed)
        from gptrio.cli.chat_terminal import ChatTerminal
        from gptrio.generation.chat import ChatSession

        session = ChatSession(loaded, tokenizer)
        terminal = ChatTerminal(session, name, save_folder, sys.stdin.isatty() and sys.stdout.isatty())
        if load_from is not None:
            terminal.load(str(load_from))
        if system_prompt is not None:
            session.system_prompt = decode_argument(system_prompt)
        session.set_options(given)
        terminal.run()


def split_words(words: list[str]) -> tuple[str, list[str]]:
    """The model's name, which comes first if it is given, and the words with options."""
    if words and "=" not in words[0]:
        return words[0], words[1:]
    return DEFAULT_MODEL, words
