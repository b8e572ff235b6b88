"""Every exception and warning that gptrio raises.

GptrioError
├── ConfigError               (ValueError)    a configuration holds an impossible value
├── InputError                (ValueError)    arguments of a call do not fit the model
│   ├── InputTypeError        (TypeError)     an input of a pipeline is of another type
│   └── TokenIdError          (IndexError)    a token id, position or label lies outside its table
├── OptionError               (ValueError)    an option of generation or of the command line is wrong
│   ├── FileOptionError       (OSError)       a file that an option names is missing, or in the way
│   ├── OptionTypeError       (TypeError)     the value of an option is of another type
│   ├── UnknownOptionError    (TypeError)     a keyword that a class of options does not have
│   └── UnknownNameError      (KeyError)      a name for none of the choices that there are
│       └── UnknownTaskError                  a task for which there is no pipeline
├── TokenizationError         (ValueError)    text or tokenizer files cannot be handled
│   ├── UnknownArgumentError  (TypeError)     an argument that a tokenizer's call does not have
│   ├── TextTypeError         (TypeError)     what a tokenizer is to encode or to add is not text
│   ├── SettingNameError      (AttributeError) a setting of a tokenizer has the name of one of its methods
│   ├── ChatTemplateError                     a chat template is malformed, fails, or does too much
│   └── ToolSchemaError                       no JSON schema can be made of a function
│       ├── TypeHintParsingException          a type hint has no JSON schema, or is missing
│       └── DocstringParsingException         the docstring does not describe an argument
├── UnsupportedError          (ValueError)    a feature, family or back end that gptrio does not have
│   └── AbsentMethodError     (AttributeError) a method that only other models have
├── PipelineException                         the call of a pipeline fails; for pipelines of one's own
├── MissingDependencyError    (ImportError)   an optional package is needed; the message names the extra
├── DivergenceError           (ArithmeticError) losses or gradients of a training stay NaN or infinite
├── ProcessLostError          (ConnectionError) another process of a training has ended
├── GuardError                (RuntimeError)  compiled code wrote outside its buffers; only with GPTRIO_GUARDS=1
└── CheckpointError           (OSError)       a checkpoint cannot be read or written
    ├── CheckpointNotFoundError               no such file, folder or hub repository
    ├── HubUnreachableError (ConnectionError) the hub does not answer, so that it is unknown whether the file exists
    ├── CheckpointFormatError (ValueError)    truncated, tampered with or malformed
    ├── UnsafeCheckpointError (ValueError)    would run code or leave its folder
    ├── KeyMismatchError      (RuntimeError)  tensors of other names than the model's
    └── SizeMismatchError     (RuntimeError)  tensors of other shapes than the model's

Each also derives from the built-in type in parentheses, so that code written for the built-in keeps working.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any


class GptrioError(Exception):
    """Base of every exception of this package.

    Attributes:
        index: number from 0, among a pipeline's inputs, of the one that the error is of; None if it is of no one.
    """

    index: int | None = None


def name_place(error: GptrioError, place: str) -> None:
    """Let the message of an error begin with the place of what it is of, such as a line of a file."""
    error.args = (f"{place}: {error}",)


class ConfigError(GptrioError, ValueError):
    """A configuration has an impossible value."""


class InputError(GptrioError, ValueError):
    """Arguments of a call do not fit the model or each other."""


class InputTypeError(InputError, TypeError):
    """An input of a pipeline is of another type than what it takes."""


class TokenIdError(InputError, IndexError):
    """A token id, position or label lies outside its table."""


class OptionError(GptrioError, ValueError):
    """An option of generation or of the command line is unknown, impossible or contradicts another."""


class FileOptionError(OptionError, OSError):
    """A file that an option names is missing, or exists and is not to be replaced."""


class OptionTypeError(OptionError, TypeError):
    """The value of an option is of another type than what it takes."""


class UnknownOptionError(OptionError, TypeError):
    """A class of options was called with a keyword that it does not have."""


class UnknownNameError(OptionError, KeyError):
    """A name for none of the choices that there are."""

    __str__ = Exception.__str__  # KeyError shows the message in quotes


class UnknownTaskError(UnknownNameError):
    """A task for which there is no pipeline."""


class TokenizationError(GptrioError, ValueError):
    """Text or tokenizer files cannot be handled."""


class UnknownArgumentError(TokenizationError, TypeError):
    """A tokenizer was called with an argument that it does not have."""


class TextTypeError(TokenizationError, TypeError):
    """What a tokenizer is to encode or to add is not text."""


class SettingNameError(TokenizationError, AttributeError):
    """A setting of a tokenizer has the name of one of its methods."""


class ChatTemplateError(TokenizationError):
    """A chat template is malformed, fails, or does more than it may; what it raises is also jinja2's TemplateError."""


class ToolSchemaError(TokenizationError):
    """No JSON schema can be made of a function, which is to describe it to a model."""


class TypeHintParsingException(ToolSchemaError):
    """A type hint of the function has no JSON schema, or is missing."""


class DocstringParsingException(ToolSchemaError):
    """The function's docstring does not describe an argument."""


class UnsupportedError(GptrioError, ValueError):
    """A feature, model family or back end that gptrio does not have."""


class AbsentMethodError(UnsupportedError, AttributeError):
    """A method that only other models have, such as `generate`."""


class PipelineException(GptrioError):
    """The call of a pipeline fails; for pipelines of one's own, as those of this package raise the errors above.

    Args:
        task: of the pipeline.
        model: its name.
        reason: the message.
    """

    def __init__(self, task: str, model: str, reason: str) -> None:
        super().__init__(reason)
        self.task = task
        self.model = model


class MissingDependencyError(GptrioError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""


class DivergenceError(GptrioError, ArithmeticError):
    """Losses or gradients of a training stay NaN or infinite."""


class ProcessLostError(GptrioError, ConnectionError):
    """Another process of a training has ended, so that this one cannot go on."""


class GuardError(GptrioError, RuntimeError):
    """Compiled code wrote outside its buffers; checked only if GPTRIO_GUARDS=1 is set in the environment."""


class CheckpointError(GptrioError, OSError):
    """A checkpoint cannot be read or written."""


class CheckpointNotFoundError(CheckpointError):
    """No such file, folder or hub repository."""


class HubUnreachableError(CheckpointError, ConnectionError):
    """The hub does not answer, and its cache has no record of the file."""


class CheckpointFormatError(CheckpointError, ValueError):
    """A checkpoint file is truncated, tampered with or malformed."""


class UnsafeCheckpointError(CheckpointError, ValueError):
    """A checkpoint would run code or reach outside its folder."""


class KeyMismatchError(CheckpointError, RuntimeError):
    """Tensors of a checkpoint have other names than the model's."""


class SizeMismatchError(CheckpointError, RuntimeError):
    """Tensors of a checkpoint have other shapes than the model's."""


class GptrioWarning(UserWarning):
    """A call works, but probably not as intended; the message names the way out."""


def warn(message: str, category: type[Warning] = GptrioWarning) -> None:
    """Warn at the line that called this package, unless the log level is above WARNING.

    `gptrio.logging.set_verbosity_error()`, or another level above WARNING for the logger "gptrio", silences warnings.
    """
    import logging  # slower to import than the rest of this module, and seldom needed

    if logging.getLogger("gptrio").level > logging.WARNING:
        return
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(("gptrio.", "torch.")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def counted(number: int, noun: str) -> str:
    """A number of things in words, such as "1 token" or "2,000 tokens"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6, before: str = "") -> str:
    """The known name most like an unknown one, as a question after the text `before`; "" if none is like it."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"{before}did you mean {near[0]!r}?" if near else ""


def import_optional(module: str, message: str) -> Any:
    """Import and return a module of a package that may be missing; raises MissingDependencyError with `message`."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(message) from error
