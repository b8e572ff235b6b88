"""Files of hub repositories: from the hub's cache, or downloaded, with a clear error when the hub does not answer.

`huggingface_hub` takes longer to import than the rest of a start-up, so it is imported only when a file is asked for.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gptrio.errors import CheckpointError, CheckpointNotFoundError, HubUnreachableError, warn

if TYPE_CHECKING:
    from gptrio.hub import HubOptions

COMMIT = re.compile("[0-9a-f]{40}")
_TIME_LIMIT = 5.0  # seconds to wait for the hub to answer whether a file exists
_warned_of: set[str] = set()  # repositories whose cached files are used without the hub


def download(repo_id: str, filename: str, options: HubOptions, required: bool) -> Path | None:
    """A file of a hub repository: from the cache if the revision is a commit, which never changes, else from the hub.

    Where the hub cannot be reached, a file that the cache knows for this revision is used, with one warning.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HFValidationError

    try:
        url = hf_hub_url(repo_id, filename, revision=options.revision)
    except HFValidationError as error:
        raise CheckpointNotFoundError(
            f"{repo_id!r} is neither an existing folder nor a possible hub repository id ('name' or 'user/name')"
        ) from error
    is_final = COMMIT.fullmatch(options.revision or "") is not None and not options.force_download
    offline = offline_reason(options)
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


def list_folder(repo_id: str, folder: str, options: HubOptions) -> list[str]:
    """Names of what is in a folder of a hub repository: in the hub's answer, or, if there is none, in its cache."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    revision, cache_dir = options.revision, None if options.cache_dir is None else Path(options.cache_dir)
    if not offline_reason(options):
        try:
            with _one_try():
                tree = HfApi(token=options.token).list_repo_tree(repo_id, folder, revision=revision)
                return sorted(PurePosixPath(entry.path).name for entry in tree)
        except Exception:  # the library's, requests' or httpx's: no such folder, or no answer
            pass
    try:
        snapshot = snapshot_download(repo_id, revision=revision, cache_dir=cache_dir, local_files_only=True)
    except LocalEntryNotFoundError:
        return []
    return sorted(path.name for path in Path(snapshot, folder).glob("*"))


def file_sizes(repo_id: str, options: HubOptions) -> dict[str, int]:
    """Names of the files of a hub repository, and their bytes; raises CheckpointError if it does not tell them."""
    from huggingface_hub import HfApi

    try:
        with _one_try():
            api = HfApi(token=options.token)
            tree = api.list_repo_tree(repo_id, options.subfolder or None, revision=options.revision)
            return {PurePosixPath(entry.path).name: entry.size for entry in tree if hasattr(entry, "size")}
    except Exception as error:  # the library's, requests' or httpx's
        raise _refusal(error, repo_id, "the list of files", options) from error


def read_part(repo_id: str, filename: str, first: int, end: int, options: HubOptions) -> bytes:
    """Bytes from `first` up to `end` of a file of a hub repository, which is not downloaded; raises CheckpointError."""
    from huggingface_hub import get_session, hf_hub_url, utils

    library: Any = utils  # whose types lack these functions
    try:
        with _one_try():
            url = hf_hub_url(repo_id, filename, subfolder=options.subfolder or None, revision=options.revision)
            headers = {**library.build_hf_headers(token=options.token), "range": f"bytes={first}-{end - 1}"}
            response: Any = get_session().get(url, headers=headers, timeout=_time_limit())
            library.hf_raise_for_status(response)
            return bytes(response.content[: end - first])
    except Exception as error:  # the library's, requests' or httpx's
        raise _refusal(error, repo_id, filename, options) from error


def offline_reason(options: HubOptions) -> str:
    """Why the network must not be used, or "" if it may be."""
    from huggingface_hub import constants

    if options.local_files_only:
        return "local_files_only=True was given"
    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""


def _time_limit() -> float:
    return float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or _TIME_LIMIT)


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
    """Why the hub does not answer a request for the address of a file; None if it does, with any answer but an error.

    huggingface_hub retries a dead connection for up to a minute and logs each attempt; one short request first avoids
    that. The time limit is HF_HUB_ETAG_TIMEOUT, or 5 seconds.
    """
    from huggingface_hub import get_session, utils

    library: Any = utils  # whose types lack the function for headers
    try:
        headers = library.build_hf_headers(token=options.token)
        status = get_session().head(url, headers=headers, timeout=_time_limit()).status_code
    except Exception as error:  # requests' or httpx's, by the version of huggingface_hub
        return f"the hub at {_host(url)} cannot be reached ({_kind_of(error)})"
    return f"the hub at {_host(url)} answered {status}" if status >= 500 or status == 429 else None


def _fetch(repo_id: str, filename: str, options: HubOptions, required: bool) -> Path | None:
    """Download a file unless the cache has the hub's newest version of it; None if the repository lacks it.

    Raises:
        CheckpointNotFoundError: there is no such repository, revision or (if required) file, or access is refused.
        HubUnreachableError: the connection broke.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    arguments = options.as_kwargs() | {"subfolder": None}  # already part of filename
    del arguments["trust_remote_code"]
    try:
        with _one_try():
            return Path(hf_hub_download(repo_id, filename, **arguments))
    except LocalEntryNotFoundError as error:  # the library raises it for any request without a useful answer
        raise _refusal(error.__cause__ or error, repo_id, filename, options) from error
    except EntryNotFoundError:
        return _found(None, required, _missing_message(repo_id, filename, options, ""))
    except Exception as error:  # the library's, requests' or httpx's, or a file shorter than promised
        raise _refusal(error, repo_id, filename, options) from error


def _refusal(error: BaseException, repo_id: str, filename: str, options: HubOptions) -> CheckpointError:
    """The error for a download that failed: with the hub's answer, or because there was none."""
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
    """Make huggingface_hub try once, without log lines: it would retry a dead connection for half a minute.

    Failures are raised as an error that it does not retry. Sessions of httpx, in newer versions, are not changed.
    """
    from huggingface_hub import get_session

    logger = logging.getLogger("huggingface_hub")
    session: Any = get_session()
    level, adapters = logger.level, dict(getattr(session, "adapters", {}))
    logger.setLevel(logging.CRITICAL)
    for prefix, adapter in adapters.items():
        session.adapters[prefix] = _FailFastAdapter(adapter)
    try:
        yield
    finally:
        logger.setLevel(level)
        if adapters:
            session.adapters.update(adapters)


class _FailFastAdapter:
    """An adapter of requests whose failures are not retried."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter

    def send(self, *args: Any, **kwargs: Any) -> Any:
        """Send a request; raises HubUnreachableError if the connection or the server fails."""
        try:
            response = self._adapter.send(*args, **kwargs)
        except OSError as error:  # requests' exceptions
            raise HubUnreachableError(_kind_of(error)) from error
        if response.status_code >= 500:
            raise HubUnreachableError(f"it answered {response.status_code}")
        return response

    def close(self) -> None:
        """Do nothing: the session closes the adapter itself."""


def _warn_of_cached_copy(repo_id: str, reason: str) -> None:
    """Warn once for each repository that its cached files are used."""
    if repo_id not in _warned_of:
        _warned_of.add(repo_id)
        warn(f"{reason}; the cached files of {repo_id!r} are used (HF_HUB_OFFLINE=1 does so without asking the hub)")


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _kind_of(error: BaseException) -> str:
    """The cause of a failed request, in a few words."""
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
