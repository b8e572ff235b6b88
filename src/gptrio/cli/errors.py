"""Errors and warnings of a command on standard error: one line each, with a traceback on request."""

from __future__ import annotations

import errno
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import typer

from gptrio.cli.text import discard_output
from gptrio.cli.wording import option_names, translate
from gptrio.errors import GptrioError, GptrioWarning, OptionError


def print_error(message: str) -> None:
    """Print a message on standard error as one line that begins with the program's name."""
    print(f"gptrio: {' '.join(message.split())}", file=sys.stderr)


@contextmanager
def report_errors(context: typer.Context, verbose: bool) -> Iterator[None]:
    """Turn exceptions of a command into one line and an exit code, and warnings of gptrio into one line.

    Args:
        context: of the command; messages name its options instead of arguments in Python.
        verbose: also print the traceback, warnings of other libraries, and gptrio's log from level INFO on.

    Raises:
        typer.Exit: code 2 for an OptionError, 1 for any other exception; 0 where the reader of a pipe has closed it, as
            `head` does once it has what it wants.
    """

    options = option_names(context.command.params)

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if verbose or issubclass(category, GptrioWarning):
            print_error(f"warning: {translate(str(message), options)}")

    try:
        with warnings.catch_warnings(), _log_lines(verbose):
            warnings.showwarning = cast(Any, show)
            yield
    except (typer.Exit, typer.TyperException):
        raise
    except BrokenPipeError as error:
        discard_output()
        raise typer.Exit(0) from error
    except Exception as error:
        if verbose:
            traceback.print_exc()
        print_error(translate(_message(error, verbose), options))
        raise typer.Exit(2 if isinstance(error, OptionError) else 1) from error


class _Lines(logging.Handler):
    """Prints log records as lines of this command."""

    def emit(self, record: logging.LogRecord) -> None:
        print_error(record.getMessage())


@contextmanager
def _log_lines(verbose: bool) -> Iterator[None]:
    """Print warnings of gptrio's log, and on request everything from INFO on, and warnings of other libraries."""
    log, silent = logging.getLogger("gptrio"), logging.NullHandler()
    handlers, level = log.handlers, log.level
    log.handlers = [_Lines()]
    if verbose:
        log.setLevel(min(level or logging.INFO, logging.INFO))
    else:
        logging.root.addHandler(silent)  # without one, Python prints warnings
    try:
        yield
    finally:
        logging.root.removeHandler(silent)
        log.handlers = handlers
        log.setLevel(level)


def _message(error: Exception, verbose: bool) -> str:
    if isinstance(error, GptrioError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        file = "" if error.filename is None else f"{error.filename}: "
        is_of_path = file and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
        return f"{file}{error.strerror.lower()}{'; check the path and its permissions' if is_of_path else ''}"
    return f"{type(error).__name__}: {error}{'' if verbose else ' (--verbose shows where)'}"
