"""Verbosity of gptrio, with the functions of `transformers.logging`.

Warnings are Python warnings (`GptrioWarning`); other messages go to the logger "gptrio". `set_verbosity_error()`
silences both; `set_verbosity_info()` and `set_verbosity_debug()` show more messages of the logger.
`GPTRIO_VERBOSITY` (or `TRANSFORMERS_VERBOSITY`) in the environment sets the level at the start.
"""

from __future__ import annotations

import logging
import os
import threading
from logging import CRITICAL as CRITICAL
from logging import DEBUG as DEBUG
from logging import ERROR as ERROR
from logging import FATAL as FATAL
from logging import INFO as INFO
from logging import NOTSET as NOTSET
from logging import WARN as WARN
from logging import WARNING as WARNING
from types import MethodType
from typing import Any

from gptrio.errors import warn
from gptrio.utils.installed import is_set

log_levels = {
    "detail": DEBUG,  # with file and line
    "debug": DEBUG,
    "info": INFO,
    "warning": WARNING,
    "error": ERROR,
    "critical": CRITICAL,
}
_VARIABLES = ("GPTRIO_VERBOSITY", "TRANSFORMERS_VERBOSITY")
_EXPLICIT = "[%(levelname)s|%(filename)s:%(lineno)s] %(asctime)s >> %(message)s"
_root = logging.getLogger("gptrio")
_handler = logging.StreamHandler()  # to standard error
_lock = threading.Lock()
_is_configured = False


def _warning_advice(self: logging.Logger, message: object, *args: Any, **kwargs: Any) -> None:
    if not os.environ.get("TRANSFORMERS_NO_ADVISORY_WARNINGS"):
        self.warning(message, *args, **kwargs)


def _warning_once(self: logging.Logger, message: object, *args: Any, **kwargs: Any) -> None:
    if _is_first(WARNING, message, args):
        self.warning(message, *args, **kwargs)


def _info_once(self: logging.Logger, message: object, *args: Any, **kwargs: Any) -> None:
    if _is_first(INFO, message, args):
        self.info(message, *args, **kwargs)


_said: set[tuple[int, str, str]] = set()


def _is_first(level: int, message: object, args: tuple[Any, ...]) -> bool:
    key = (level, str(message), repr(args))
    is_first = key not in _said
    _said.add(key)
    return is_first


def _configure() -> logging.Logger:
    """Return gptrio's logger; the first call adds a handler that writes to standard error."""
    global _is_configured
    with _lock:
        if not _is_configured:
            _is_configured = True
            _root.addHandler(_handler)
            _root.propagate = is_set("CI")
            if _root.level == NOTSET:
                _root.setLevel(_level_of_environment())
    return _root


def _level_of_environment() -> int:
    for variable in _VARIABLES:
        name = os.environ.get(variable, "")
        if name.lower() in log_levels:
            if name.lower() == "detail":
                _handler.setFormatter(logging.Formatter(_EXPLICIT.replace("filename", "pathname")))
            return log_levels[name.lower()]
        if name:
            warn(f"{variable}={name!r} is not known; expected one of {', '.join(log_levels)}")
    return WARNING


def get_log_levels_dict() -> dict[str, int]:
    """Levels by name."""
    return log_levels


def get_logger(name: str | None = None) -> logging.Logger:
    """Return the logger of a name, of gptrio by default, with `warning_once`, `info_once` and `warning_advice`."""
    _configure()
    logger = logging.getLogger(name or "gptrio")
    for method in (_warning_advice, _warning_once, _info_once):
        if not hasattr(logger, method.__name__[1:]):
            setattr(logger, method.__name__[1:], MethodType(method, logger))
    return logger


def get_verbosity() -> int:
    """Level of gptrio's logger."""
    return _configure().getEffectiveLevel()


def set_verbosity(verbosity: int) -> None:
    """Set the level of gptrio's logger; above WARNING, gptrio's warnings are silent too."""
    _configure().setLevel(verbosity)


def set_verbosity_debug() -> None:
    """Show everything."""
    set_verbosity(DEBUG)


def set_verbosity_info() -> None:
    """Show messages about normal operation, warnings and errors."""
    set_verbosity(INFO)


def set_verbosity_warning() -> None:
    """Show warnings and errors, as by default."""
    set_verbosity(WARNING)


def set_verbosity_error() -> None:
    """Show errors only."""
    set_verbosity(ERROR)


def disable_default_handler() -> None:
    """Write nothing to standard error."""
    _configure().removeHandler(_handler)


def enable_default_handler() -> None:
    """Write to standard error again."""
    _configure().addHandler(_handler)


def add_handler(handler: logging.Handler) -> None:
    """Add a handler to gptrio's logger."""
    _configure().addHandler(handler)


def remove_handler(handler: logging.Handler) -> None:
    """Remove a handler from gptrio's logger."""
    _configure().removeHandler(handler)


def disable_propagation() -> None:
    """Do not pass messages of gptrio's logger to its parent loggers, as by default."""
    _configure().propagate = False


def enable_propagation() -> None:
    """Pass messages of gptrio's logger to its parent loggers too."""
    _configure().propagate = True


def enable_explicit_format() -> None:
    """Make every handler of gptrio's logger write level, file, line and time."""
    for handler in _configure().handlers:
        handler.setFormatter(logging.Formatter(_EXPLICIT))


def reset_format() -> None:
    """Make every handler of gptrio's logger write the message alone."""
    for handler in _configure().handlers:
        handler.setFormatter(None)


def captureWarnings(capture: bool) -> None:
    """Log Python's warnings, through the logger "py.warnings" at gptrio's level, or stop doing so."""
    logger = get_logger("py.warnings")
    if not logger.handlers:
        logger.addHandler(_handler)
    logger.setLevel(_configure().level)
    logging.captureWarnings(capture)


def is_progress_bar_enabled() -> bool:
    """Whether downloads show a progress bar."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled

    return not are_progress_bars_disabled()


def enable_progress_bar() -> None:
    """Show progress bars of downloads."""
    from huggingface_hub.utils.tqdm import enable_progress_bars

    enable_progress_bars()


def disable_progress_bar() -> None:
    """Show no progress bars of downloads."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()


def tqdm(*args: Any, **kwargs: Any) -> Any:
    """Return a progress bar of the package tqdm, disabled if progress bars are switched off."""
    from tqdm.auto import tqdm as bar

    return bar(*args, **{"disable": not is_progress_bar_enabled(), **kwargs})
