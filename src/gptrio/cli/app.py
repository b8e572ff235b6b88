"""The command group: imports a command by its name; prints an error as one line and returns its exit code."""

from __future__ import annotations

import importlib
import inspect
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from gptrio import __version__
from gptrio.cli.errors import print_error
from gptrio.cli.text import set_output_encoding

# command -> module with a function of the same name
COMMANDS = {
    "generate": "gptrio.cli.generate",
    "chat": "gptrio.cli.chat",
    "run": "gptrio.cli.run",
    "score": "gptrio.cli.score",
    "ppl": "gptrio.cli.ppl",
    "compare": "gptrio.cli.compare",
    "tokenize": "gptrio.cli.tokenize",
    "info": "gptrio.cli.info",
    "download": "gptrio.cli.download",
    "eval": "gptrio.cli.eval",
    "convert": "gptrio.cli.convert",
    "verify": "gptrio.cli.verify",
    "env": "gptrio.cli.env",
}


class LazyGroup(TyperGroup):
    """Commands that are imported when they are called or listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the commands in the order of help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """Import a command and build its parser from the function's signature; None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        function = getattr(importlib.import_module(COMMANDS[cmd_name]), cmd_name)
        app = typer.Typer(add_completion=False)
        # help is read as Rich markup, to which gptrio[eval] would be gptrio with a style
        app.command(cmd_name, help=escape(inspect.getdoc(function) or ""))(function)
        command = typer.main.get_command(app)
        command.name = cmd_name
        return command  # type: ignore[return-value]  # one command and no callback: always a TyperCommand


app = typer.Typer(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})


def _print_version(is_given: bool) -> None:
    if is_given:
        print(f"gptrio {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Generate, score and inspect text and models of the families GPT-2, GPT-Neo and GPT-NeoX."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code.

    Args:
        arguments: what follows the program's name.
    """
    set_output_encoding()
    try:
        code = app(arguments, prog_name="gptrio", standalone_mode=False)
    except typer.TyperException as error:
        print_error(_usage_message(error, arguments))
        return error.exit_code
    return code if isinstance(code, int) else 0


def _usage_message(error: typer.TyperException, arguments: list[str]) -> str:
    """Return what is wrong with a command line, the nearest command, and where its help is."""
    message = error.format_message().rstrip(".").replace("Value error, ", "").replace("Input should be", "it must be")
    command = arguments[0] if arguments[:1] and arguments[0] in COMMANDS else ""
    if not command and arguments and message.startswith("No such command"):
        longer = [name for name in COMMANDS if name.startswith(arguments[0])]
        near = longer or get_close_matches(arguments[0], COMMANDS, 1, cutoff=0.5)
        message += f" (did you mean '{near[0]}'?)" if near else ""
    return f"{message}; see '{' '.join(filter(None, ('gptrio', command, '--help')))}'"
