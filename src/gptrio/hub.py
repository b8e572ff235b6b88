"""The files of a model: where they are (a folder, the package, the hub's cache, the hub), read and written safely."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, cast

from gptrio.downloads import COMMIT, download, list_folder
from gptrio.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    GptrioError,
    OptionError,
    UnsafeCheckpointError,
    UnsupportedError,
)

_PACKAGED_PREFIX = "gptrio/"
_ASSETS = Path(__file__).parent / "assets"
_MOST_NESTED = 50  # levels of a JSON file


@dataclass(frozen=True)
class HubOptions:
    """How to look a file up: the arguments that every `from_pretrained` shares.

    Args:
        subfolder: folder inside the repository or local folder.
        revision: branch, tag or commit of a hub repository (its main branch when None).
        cache_dir: where the hub's files are cached (huggingface_hub's default when None).
        token: hub access token; True means the stored one, None the stored one if there is one.
        local_files_only: do not use the network.
        force_download: download files again that are cached.
        trust_remote_code: accepted, as many scripts pass it always; a checkpoint that has code is refused with it.
    """

    subfolder: str = ""
    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    force_download: bool = False
    trust_remote_code: bool = False

    @classmethod
    def pop_from(cls, kwargs: MutableMapping[str, Any]) -> HubOptions:
        """Take the lookup arguments out of `kwargs`; an explicit None means the default.

        `use_auth_token` is an older name of `token`.

        Raises:
            OptionError: both are given.
        """
        kwargs["token"] = pop_token(kwargs)
        found = {field.name: kwargs.pop(field.name, None) for field in fields(cls)}
        return cls(**{name: value for name, value in found.items() if value is not None})

    def as_kwargs(self) -> dict[str, Any]:
        """Return the options as keyword arguments of `from_pretrained`."""
        return {field.name: getattr(self, field.name) for field in fields(HubOptions)}

    def pinned_to(self, path: Path) -> HubOptions:
        """Return the options for more files of the commit that `path`, a file in the hub's cache, belongs to.

        They come from the cache without asking the hub again, and never from a newer commit.
        """
        commit = commit_of(path)
        return self if commit is None else replace(self, revision=commit)

    def find(self, name_or_path: str | os.PathLike[str], filename: str) -> Path | None:
        """Return the path of a file of a model, or None if the model lacks it; else as `locate`."""
        return _locate(name_or_path, filename, self, required=False)

    def locate(self, name_or_path: str | os.PathLike[str], filename: str) -> Path:
        """Return the path of a file that a model must have, downloading it if need be.

        Args:
            name_or_path: a folder, the name of a packaged model ("gptrio/stdlib-gpt2") or a hub repository id.
            filename: file in that folder, with "/" between its parts.

        Raises:
            CheckpointNotFoundError: the file, the folder or the repository does not exist.
            HubUnreachableError: the hub does not answer, and its cache does not have the file either.
            UnsafeCheckpointError: `filename` or `subfolder` points outside the folder.
        """
        return cast(Path, _locate(name_or_path, filename, self, required=True))

    def list_folder(self, name_or_path: str | os.PathLike[str], folder: str) -> list[str]:
        """Return the names of what is in a folder of a model, in order; none if there is no such folder."""
        relative, local = _relative_path(self.subfolder, folder), local_folder(name_or_path)
        if local is None:
            _refuse_file(name_or_path)
            return list_folder(os.fspath(name_or_path), str(relative), self)
        return sorted(path.name for path in (local / relative).glob("*"))


def refuse_code(is_trusted: bool | None, content: Mapping[str, Any], name: object) -> None:
    """Raise UnsupportedError if the caller trusts the code of a checkpoint that has some.

    Args:
        is_trusted: the caller's `trust_remote_code`.
        content: of a configuration; code stands in its `auto_map`.
        name: of the file or class, for the message.
    """
    if is_trusted and content.get("auto_map"):
        raise UnsupportedError(
            f"{name} has code of its own (auto_map), and gptrio never runs code from a checkpoint. Leave "
            "trust_remote_code=True out to load gptrio's own class, or add a family of your own with "
            "AutoConfig.register"
        )


def pop_token(kwargs: MutableMapping[str, Any]) -> str | bool | None:
    """Take the token out of `kwargs`, under its older name too; raises OptionError if both are given."""
    token, older = kwargs.pop("token", None), kwargs.pop("use_auth_token", None)
    if token is not None and older is not None:
        raise OptionError("token and use_auth_token are both given; pass token alone, its newer name")
    given: str | bool | None = older if token is None else token
    return given


def commit_of(path: Path) -> str | None:
    """The commit that a file in the hub's cache belongs to; None for other files."""
    commits = [commit for folder, commit in pairwise(path.parts) if folder == "snapshots"]
    return commits[-1] if commits and COMMIT.fullmatch(commits[-1]) else None


def _locate(name_or_path: str | os.PathLike[str], filename: str, options: HubOptions, *, required: bool) -> Path | None:
    relative = _relative_path(options.subfolder, filename)
    folder = local_folder(name_or_path)
    if folder is None:
        _refuse_file(name_or_path)
        return download(os.fspath(name_or_path), str(relative), options, required)
    path = folder / relative
    if path.is_file():
        return path
    if required:
        raise CheckpointNotFoundError(f"no file {relative} in folder {folder}; it holds: {_listing(path.parent)}")
    return None


def _refuse_file(name_or_path: str | os.PathLike[str]) -> None:
    if Path(name_or_path).is_file():
        raise CheckpointNotFoundError(
            f"{os.fspath(name_or_path)!r} is a file; give the folder that holds it, or the name of a hub repository"
        )


def local_folder(name_or_path: str | os.PathLike[str]) -> Path | None:
    """Return the folder that a name stands for: an existing folder, a packaged model, or None for a hub id.

    Names that start with "gptrio/" are never looked up on the hub; unknown ones raise CheckpointNotFoundError.
    """
    name = os.fspath(name_or_path)
    folder = Path(name).expanduser()
    if name and folder.is_dir():  # Path("") is the current folder, but an empty name is a mistake
        return folder
    if not name.startswith(_PACKAGED_PREFIX):
        return None
    packaged = sorted(path.name for path in _ASSETS.glob("*") if path.is_dir())
    if name.removeprefix(_PACKAGED_PREFIX) in packaged:
        return _ASSETS / name.removeprefix(_PACKAGED_PREFIX)
    raise CheckpointNotFoundError(f"no packaged model {name!r}; there are: {', '.join(packaged) or 'none'}")


def folder_to_write(path: str | os.PathLike[str], purpose: str) -> Path:
    """A path at which a folder is, or can be made.

    Raises:
        CheckpointError: a file is there; the message ends with what the folder is expected to do.
    """
    folder = Path(path)
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; expected a folder {purpose}")
    return folder


def read_json(path: str | os.PathLike[str], error_class: type[GptrioError] = CheckpointFormatError) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointFormatError, or `error_class`: it holds anything else, or one nested more than 50 levels deep.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"no file {os.fspath(path)}") from error
    except (ValueError, RecursionError) as error:  # covers JSON and UTF-8
        raise error_class(f"{os.fspath(path)} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise error_class(f"{os.fspath(path)} holds a {type(content).__name__}; expected a JSON object")
    if _is_nested_deeper(content, _MOST_NESTED):
        raise error_class(f"{os.fspath(path)} is nested more than {_MOST_NESTED} deep, as no checkpoint is")
    return content


def _is_nested_deeper(content: Any, levels: int) -> bool:
    """Return whether objects and lists are nested more than so many levels deep."""
    nodes = [content]
    for _ in range(levels + 1):
        inner = (node.values() if isinstance(node, dict) else node for node in nodes if isinstance(node, (dict, list)))
        nodes = [child for children in inner for child in children]
    return bool(nodes)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, all of it or nothing: an old file stays until the new one is complete."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` when the block ends well, and is deleted if it fails.

    Its bytes are on the disk before it gets its name, so that a power cut leaves the old file or the new one. A pipe
    or a device, such as /dev/stdout, is not replaced but written to: its own path is yielded.
    """
    target = Path(path)
    if is_stream(target):
        try:
            yield target
        except OSError as error:
            if error.filename is not None:
                raise
            raise _named(error, target) from error
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        flush_to_disk(temporary)
        temporary.replace(target)
        flush_to_disk(target.parent)
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise
        kept = "the file is as it was before" if target.exists() else "nothing of it was left"
        raise _named(error, target, kept) from error
    finally:
        temporary.unlink(missing_ok=True)


def _named(error: OSError, file: Path, kept: str = "") -> OSError:
    """The error of writing a file, with its name and what is left of it."""
    if not error.strerror:
        return error
    return type(error)(error.errno, f"{error.strerror}; {kept}" if kept else error.strerror, str(file))


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a pipe or a device, or a link to one."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def flush_to_disk(path: str | os.PathLike[str]) -> None:
    """Wait until a file's bytes, or the names in a folder, would survive a power cut (fsync).

    Raises:
        OSError: the disk failed to write them. File systems that cannot flush a folder are passed over.
    """
    is_folder = os.path.isdir(path)
    if is_folder and os.name == "nt":  # which cannot open a folder
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def files_of(folder: Path) -> list[str]:
    """Names of all files below a folder, relative to it, with "/"."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; read in parts, as checkpoints are large."""
    digest, buffer = hashlib.sha256(), bytearray(1 << 20)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def _relative_path(subfolder: str, filename: str) -> PurePosixPath:
    relative = PurePosixPath(subfolder, filename)
    if relative.is_absolute() or ".." in relative.parts:
        raise UnsafeCheckpointError(f"file name {relative} leads outside the model's folder; expected a name inside it")
    return relative


def _listing(folder: Path, limit: int = 10) -> str:
    if not folder.is_dir():
        return "no such folder"
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:limit] + ["..."] * (len(names) > limit)) or "nothing"
