"""The command group: imports a command by its name; prints an error as one line and returns its exit code."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from gptrio import __version__
from gptrio.cli.errors import print_error
from gptrio.cli.text import discard_output, set_output_encoding
from gptrio.errors import nearest

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
    "train": "gptrio.cli.train",
    "merge": "gptrio.cli.merge",
    "convert": "gptrio.cli.convert",
    "verify": "gptrio.cli.verify",
    "env": "gptrio.cli.env",
}


def _without_types(params: list[Any]) -> list[Any]:
    """Parameters whose flags are shown as what they are: without the type of a value, which they do not take."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


class Command(TyperCommand):
    """A command whose help shows flags alone."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, --help among them."""
        return _without_types(super().get_params(ctx))


class LazyGroup(TyperGroup):
    """Commands that are imported when they are called or listed."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, --help among them."""
        return _without_types(super().get_params(ctx))

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
        app.command(cmd_name, cls=Command, help=escape(inspect.getdoc(function) or ""))(function)
        command = typer.main.get_command(app)
        command.name = cmd_name
        return command  # type: ignore[return-value]  # one command and no callback: always a TyperCommand


def _with_hyphens(name: str) -> str:
    """An option's name, which may be typed with underscores, as in Transformers' commands."""
    return name.replace("_", "-")


app = typer.Typer(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _with_hyphens},
)


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
    code: object = 0
    try:
        code = app(arguments, prog_name="gptrio", standalone_mode=False)
        print(end="", flush=True)
    except typer.TyperException as error:
        print_error(_usage_message(error, arguments))
        return error.exit_code
    except SystemExit as error:  # typer's, for a help that is not read to its end
        if not isinstance(error.__context__, BrokenPipeError):
            raise
    except OSError as error:  # of the last lines
        discard_output()
        if not code and not isinstance(error, BrokenPipeError):
            print_error(f"standard output cannot be written: {(error.strerror or '').lower()}")
            return 1
    return code if isinstance(code, int) else 0


# what typer says, and how it is said here
_PHRASES = {
    r"Value error, ": "",
    r"Input should be a valid (integer|number),.*": r"{value!r} is no \1",
    r"Input should be": "{value} is impossible: it must be",
    r"Got unexpected extra argument\(s\) \((.*)\)": r"Unexpected argument '\1'",
}


def _usage_message(error: typer.TyperException, arguments: list[str]) -> str:
    """Return what is wrong with a command line, the nearest name, and where its help is."""
    message = error.format_message().rstrip(".")
    invalid: Any = getattr(error.__cause__, "errors", lambda: [{}])()  # of pydantic, by which typer reads values
    for pattern, words in _PHRASES.items():
        message = re.sub(pattern, words.format(value=invalid[0].get("input")), message)
    message, several, options = message.partition(" (Possible options: ")
    if several:
        unknown = message.rpartition(" ")[2]
        message += f" ({nearest(unknown, options.rstrip(')').split(', '), 0)})"
    commands = [name for name in arguments if name in COMMANDS]
    if arguments[:1] == commands[:1] != []:
        return f"{message}; see 'gptrio {commands[0]} --help'"
    if commands and message.startswith("No such option"):
        message = f"{message.partition(' (')[0]}; options follow the command, as in: gptrio {commands[0]} --help"
    elif message.startswith("No such command"):
        longer = [f"did you mean {name!r}?" for name in COMMANDS if name.startswith(arguments[0])]
        hint = longer[0] if longer else nearest(arguments[0], COMMANDS, 0.5)
        message += f" ({hint})" if hint else ""
    return f"{message}; see 'gptrio --help'"
