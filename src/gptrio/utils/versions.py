"""Checks of versions with which scripts begin, under the names of `transformers.utils.versions`."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from typing import Any

from gptrio.errors import InputError, MissingDependencyError

API_VERSION = "4.56.2"  # the release of Transformers whose interface and files this package has


def versioned_file(name: str, listed: Any) -> str:
    """The one among a checkpoint's versioned files that is for this package's API.

    Args:
        name: of the file without a version, such as "config.json".
        listed: names such as "config.4.0.0.json", for Transformers from that version on; others do not count.

    Returns:
        The latest that is not for a later version, or `name`.
    """
    stem, _, ending = name.rpartition(".")
    pattern = re.compile(rf"{re.escape(stem)}\.(\d{{1,4}}(?:\.\d{{1,4}})*)\.{re.escape(ending)}")
    names = [each for each in listed if isinstance(each, str)] if isinstance(listed, (list, tuple)) else []
    known = {_numbers(found[1]): each for each in names if (found := pattern.fullmatch(each))}
    fitting = [version for version in known if version <= _numbers(API_VERSION)]
    return known[max(fitting)] if fitting else name


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def check_min_version(min_version: str) -> None:
    """Check that a script for Transformers `min_version` or later can run here.

    Raises:
        MissingDependencyError: it needs a later interface.
    """
    from packaging.version import parse

    if parse(API_VERSION) < parse(min_version):
        raise MissingDependencyError(
            f"this script is for Transformers {min_version} or later, but gptrio has that of {API_VERSION}; "
            "take the script of that release"
        )


def require_version(requirement: str, hint: str | None = None) -> None:
    """Check that a package, or Python, is installed in a version that fits.

    Args:
        requirement: as for pip, such as "datasets>=2.14.0,<5", "numpy" or "python>=3.10".
        hint: added to the message of an error.

    Raises:
        InputError: the requirement cannot be read.
        MissingDependencyError: the package has another version.
        importlib.metadata.PackageNotFoundError: it is not installed.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        parsed = Requirement(requirement)
    except InvalidRequirement as error:
        raise InputError(f"requirement={requirement!r} is not of the form package or package>=1.23: {error}") from error
    end = "" if hint is None else f"\n{hint}"
    found = _found(parsed, end)
    if not parsed.specifier.contains(found, prereleases=True):
        raise MissingDependencyError(f"{requirement} is required for a normal functioning, but found {found}.{end}")


def _found(parsed: Any, end: str) -> str:
    if parsed.name == "python":
        return platform.python_version()
    try:
        return importlib.metadata.version(parsed.name)
    except importlib.metadata.PackageNotFoundError:
        raise importlib.metadata.PackageNotFoundError(
            f"the distribution {parsed} is required, but not installed.{end}"
        ) from None


def require_version_core(requirement: str) -> None:
    """`require_version` of a package that gptrio itself needs."""
    require_version(requirement, "pip install -U gptrio installs what it needs")


def send_example_telemetry(example_name: str, *example_args: Any, framework: str = "pytorch") -> None:
    """Send nothing: gptrio reports no use of it. Scripts of Transformers call this at their start."""
