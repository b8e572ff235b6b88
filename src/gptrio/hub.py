"""The files of a model: where they are (a folder, the package, the hub's cache, the hub), read and written safely.

`huggingface_hub` takes longer to import than the rest of a start-up, so it is imported only when a name is neither a
folder nor packaged.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import urlsplit

from gptrio.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    GptrioError,
    HubUnreachableError,
    OptionError,
    UnsafeCheckpointError,
    UnsupportedError,
    warn,
)

_PACKAGED_PREFIX = "gptrio/"
_COMMIT = re.compile("[0-9a-f]{40}")
_ASSETS = Path(__file__).parent / "assets"
_MOST_NESTED = 50  # levels of a JSON file
_TIME_LIMIT = 5.0  # seconds that the hub has to say whether a file is there
_warned_of: set[str] = set()  # repositories whose cached files are used without the hub


@dataclass(frozen=True)
class HubOptions:
    """How to look a file up: the arguments that every `from_pretrained` shares.

    Args:
        subfolder: folder inside the repository or local folder.
        revision: branch, tag or commit of a hub repository (its main branch when None).
        cache_dir: where the hub's files are cached (huggingface_hub's default when None).
        token: hub access token; True takes the stored one, None takes it if there is one.
        local_files_only: never reach for the network.
        force_download: fetch again what is cached.
    """

    subfolder: str = ""
    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    force_download: bool = False

    @classmethod
    def pop_from(cls, kwargs: MutableMapping[str, Any]) -> HubOptions:
        """Take the lookup arguments out of `kwargs`; an explicit None means the default.

        `use_auth_token` is an older name of `token`.

        Raises:
            OptionError: both are given.
            UnsupportedError: `trust_remote_code=True`.
        """
        refuse_remote_code(kwargs)
        kwargs["token"] = pop_token(kwargs)
        found = {field.name: kwargs.pop(field.name, None) for field in fields(cls)}
        return cls(**{name: value for name, value in found.items() if value is not None})

    def as_kwargs(self) -> dict[str, Any]:
        """Return the options as keyword arguments, for `locate_file` and `from_pretrained`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def pinned_to(self, path: Path) -> HubOptions:
        """Return the options for more files of the commit that `path`, a file in the hub's cache, belongs to.

        They come from the cache without asking the hub again, and never from a newer commit.
        """
        commit = commit_of(path)
        return self if commit is None else replace(self, revision=commit)

    def find(self, name_or_path: str | os.PathLike[str], filename: str) -> Path | None:
        """Return the path of a file of a model, or None if the model lacks it (see `locate_file`)."""
        return locate_file(name_or_path, filename, **self.as_kwargs(), required=False)

    def locate(self, name_or_path: str | os.PathLike[str], filename: str) -> Path:
        """Return the path of a file that a model must have (see `locate_file`)."""
        return cast(Path, locate_file(name_or_path, filename, **self.as_kwargs()))  # None only if not required


def refuse_remote_code(kwargs: MutableMapping[str, Any]) -> None:
    """Take `trust_remote_code` out of `kwargs`; raises UnsupportedError if it is true."""
    if kwargs.pop("trust_remote_code", None):
        raise UnsupportedError(
            "trust_remote_code=True is not supported: gptrio never runs code from a checkpoint. Leave it out, and add "
            "a family of your own with AutoConfig.register"
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
    return commits[-1] if commits and _COMMIT.fullmatch(commits[-1]) else None


def locate_file(
    name_or_path: str | os.PathLike[str],
    filename: str,
    *,
    subfolder: str = "",
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    required: bool = True,
) -> Path | None:
    """Return the path of one file of a model, downloading it if need be.

    Args:
        name_or_path: a folder, the name of a packaged model ("gptrio/stdlib-gpt2") or a hub repository id.
        filename: file in that folder, with "/" between its parts.
        subfolder, revision, cache_dir, token, local_files_only, force_download: see `HubOptions`.
        required: raise when the file is missing, instead of returning None.

    Raises:
        CheckpointNotFoundError: the file is missing and required, or the folder or repository does not exist.
        HubUnreachableError: the hub does not answer, and its cache does not know the file either.
        UnsafeCheckpointError: `filename` or `subfolder` points outside the folder.
    """
    relative = _relative_path(subfolder, filename)
    folder = local_folder(name_or_path)
    if folder is not None:
        path = folder / relative
        if path.is_file():
            return path
        if required:
            raise CheckpointNotFoundError(f"no file {relative} in folder {folder}; it holds: {_listing(path.parent)}")
        return None
    options = HubOptions(subfolder, revision, cache_dir, token, local_files_only, force_download)
    return _download(os.fspath(name_or_path), str(relative), options, required)


def local_folder(name_or_path: str | os.PathLike[str]) -> Path | None:
    """Return the folder that a name stands for: an existing folder, a packaged model, or None for a hub id.

    Names that start with "gptrio/" are never looked up on the hub; unknown ones raise CheckpointNotFoundError.
    """
    name = os.fspath(name_or_path)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not name.startswith(_PACKAGED_PREFIX):
        return None
    packaged = sorted(path.name for path in _ASSETS.glob("*") if path.is_dir())
    if name.removeprefix(_PACKAGED_PREFIX) in packaged:
        return _ASSETS / name.removeprefix(_PACKAGED_PREFIX)
    raise CheckpointNotFoundError(f"no packaged model {name!r}; there are: {', '.join(packaged) or 'none'}")


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
    """Return whether objects and lists stand in each other more than so many levels deep."""
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
    """Give a temporary path beside `path`, which takes its place when the block ends well and vanishes when not."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


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


def _download(repo_id: str, filename: str, options: HubOptions, required: bool) -> Path | None:
    """A file of a hub repository, from the cache if it is known there for good, else from the hub.

    Where the hub cannot be reached, a file that the cache knows for this revision is used, with one warning.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.errors import HFValidationError

    try:
        url = hf_hub_url(repo_id, filename, revision=options.revision)
    except HFValidationError as error:
        raise CheckpointNotFoundError(
            f"{repo_id!r} is neither an existing folder nor a possible hub repository id ('name' or 'user/name')"
        ) from error
    is_final = _COMMIT.fullmatch(options.revision or "") is not None and not options.force_download
    offline = _offline_reason(options, constants.HF_HUB_OFFLINE)
    if is_final or offline:
        known, path = _in_cache(repo_id, filename, options)
        if known or offline:
            return _found(path, required, _missing_message(repo_id, filename, options, "" if known else offline))
    reason = _why_unreachable(url, options)
    if reason is None:
        try:
            return _fetch(repo_id, filename, options, required)
        except HubUnreachableError as error:
            reason = str(error)
    known, path = (False, None) if options.force_download else _in_cache(repo_id, filename, options)
    if not known:
        raise HubUnreachableError(
            f"cannot get {filename} of {repo_id!r} ({_revision(options)}): {reason}. Connect and try again, give the "
            "path of a local folder, or pass local_files_only=True to use what the hub's cache holds"
        )
    _warn_of_cached_copy(repo_id, reason)
    return _found(path, required, _missing_message(repo_id, filename, options, ""))


def _offline_reason(options: HubOptions, is_offline: bool) -> str:
    """Why the network is not to be used, or "" if it is."""
    if options.local_files_only:
        return "local_files_only=True was given"
    return "HF_HUB_OFFLINE is set" if is_offline else ""


def _in_cache(repo_id: str, filename: str, options: HubOptions) -> tuple[bool, Path | None]:
    """Whether the hub's cache knows about a file of a revision, and its path; None if the revision lacks it."""
    from huggingface_hub import try_to_load_from_cache

    cache_dir = None if options.cache_dir is None else Path(options.cache_dir)
    found = try_to_load_from_cache(repo_id, filename, cache_dir, options.revision)
    return found is not None, Path(found) if isinstance(found, str) else None


def _found(path: Path | None, required: bool, message: str) -> Path | None:
    if path is None and required:
        raise CheckpointNotFoundError(message)
    return path


def _why_unreachable(url: str, options: HubOptions) -> str | None:
    """Why the hub does not answer for the address of a file, in a line, or None if it answers, whatever it says.

    huggingface_hub tries a dead connection again for up to a minute, and logs each try; one short question first
    spares that. The time limit is HF_HUB_ETAG_TIMEOUT, or a few seconds.
    """
    from huggingface_hub import get_session, utils

    library: Any = utils  # whose types do not tell of the function for headers
    try:
        limit = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or _TIME_LIMIT)
        status = (
            get_session().head(url, headers=library.build_hf_headers(token=options.token), timeout=limit).status_code
        )
    except Exception as error:  # requests' or httpx's, by the version of huggingface_hub
        return f"the hub at {_host(url)} cannot be reached ({_kind_of(error)})"
    return f"the hub at {_host(url)} answered {status}" if status >= 500 or status == 429 else None


def _fetch(repo_id: str, filename: str, options: HubOptions, required: bool) -> Path | None:
    """Download a file, if the cache has not the hub's newest version of it; None if the repository lacks it.

    Raises:
        CheckpointNotFoundError: there is no such repository, revision or (if required) file, or it is not to be read.
        HubUnreachableError: the connection broke.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    arguments = options.as_kwargs() | {"subfolder": None}  # already part of filename
    try:
        with _one_try():
            return Path(hf_hub_download(repo_id, filename, **arguments))
    except LocalEntryNotFoundError as error:  # what the library says of a question without a good answer
        raise _refusal(error.__cause__ or error, repo_id, filename, options) from error
    except EntryNotFoundError:
        return _found(None, required, _missing_message(repo_id, filename, options, ""))
    except Exception as error:  # the library's, requests' or httpx's, or a file shorter than promised
        raise _refusal(error, repo_id, filename, options) from error


def _refusal(error: BaseException, repo_id: str, filename: str, options: HubOptions) -> CheckpointError:
    """The error for what stands in the way of a download: an answer of the hub, or none."""
    from huggingface_hub.errors import HfHubHTTPError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if not isinstance(error, HfHubHTTPError) or (status or 0) >= 500:
        what = str(error) if isinstance(error, HubUnreachableError) else _kind_of(error)
        return HubUnreachableError(f"the download from the hub broke off ({what})")
    return CheckpointNotFoundError(  # no such repository or revision, or it is gated
        f"cannot get {filename} of {repo_id!r} ({_revision(options)}): no such folder here, and the hub answered: "
        f"{' '.join(str(error).split())}. Check name and revision; a private or gated repository needs token=..."
    )


@contextmanager
def _one_try() -> Iterator[None]:
    """Let huggingface_hub try once, without log lines: it would try a dead connection again for half a minute.

    What goes wrong is raised under a name that it does not wait for. Sessions of httpx, which newer versions use, stay
    as they are.
    """
    from huggingface_hub import get_session

    logger = logging.getLogger("huggingface_hub")
    session: Any = get_session()
    level, adapters = logger.level, dict(getattr(session, "adapters", {}))
    logger.setLevel(logging.CRITICAL)
    for prefix, adapter in adapters.items():
        session.adapters[prefix] = _Impatient(adapter)
    try:
        yield
    finally:
        logger.setLevel(level)
        if adapters:
            session.adapters.update(adapters)


class _Impatient:
    """An adapter of requests whose failures are not tried again."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter

    def send(self, *args: Any, **kwargs: Any) -> Any:
        """Send a request; raises HubUnreachableError for a connection that fails and for trouble of the server."""
        try:
            response = self._adapter.send(*args, **kwargs)
        except OSError as error:  # requests' exceptions
            raise HubUnreachableError(_kind_of(error)) from error
        if response.status_code >= 500:
            raise HubUnreachableError(f"it answered {response.status_code}")
        return response

    def close(self) -> None:
        """Leave the adapter to its session."""


def _warn_of_cached_copy(repo_id: str, reason: str) -> None:
    """Say once for a repository that its cached files are used."""
    if repo_id not in _warned_of:
        _warned_of.add(repo_id)
        warn(f"{reason}; the cached files of {repo_id!r} are used (HF_HUB_OFFLINE=1 does so without asking the hub)")


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _kind_of(error: BaseException) -> str:
    """What went wrong below, in a few words."""
    texts = {
        "Timeout": "no answer in time",
        "Connect": "no connection",
        "SSL": "no secure connection",
        "Proxy": "proxy",
    }
    names = [cls.__name__ for cls in type(error).__mro__]
    return next(
        (text for part, text in texts.items() if any(part in name for name in names)),
        f"{type(error).__name__}: {' '.join(str(error).split())[:120]}",
    )


def _missing_message(repo_id: str, filename: str, options: HubOptions, offline: str) -> str:
    if not offline:
        return f"hub repository {repo_id!r} ({_revision(options)}) has no file {filename}; check revision and subfolder"
    return (
        f"file {filename} of {repo_id!r} ({_revision(options)}) is not in the hub cache and {offline}; no folder of "
        "that name exists either. Connect and try again, or give the path of a local folder"
    )


def _revision(options: HubOptions) -> str:
    return f"revision {options.revision or 'main'}"
