"""The path of a file of a model, for scripts that read it by themselves."""

from __future__ import annotations

import os
from typing import Any

from gptrio.errors import HubUnreachableError, UnsupportedError
from gptrio.hub import HubOptions


def cached_file(path_or_repo_id: str | os.PathLike[str], filename: str, **kwargs: Any) -> str | None:
    """The path of a file of a folder, a packaged model or a hub repository, downloaded into the cache if need be.

    Args:
        path_or_repo_id: where it is.
        filename: file in that folder, with "/" between its parts.
        kwargs: options of the lookup (see `gptrio.hub.HubOptions`); `_raise_exceptions_for_missing_entries=False` and
            `_raise_exceptions_for_connection_errors=False` return None instead of raising. Others are not read.

    Raises:
        CheckpointNotFoundError, HubUnreachableError: there is no such file, or the hub does not answer.
        UnsupportedError: a `repo_type` other than "model".
    """
    if kwargs.get("repo_type") not in (None, "model"):
        raise UnsupportedError(f"repo_type={kwargs['repo_type']!r}: gptrio reads files of models alone")
    options = HubOptions.pop_from({**kwargs, "revision": kwargs.get("_commit_hash") or kwargs.get("revision")})
    look_up = options.locate if kwargs.get("_raise_exceptions_for_missing_entries", True) else options.find
    try:
        path = look_up(path_or_repo_id, filename)
    except HubUnreachableError:
        if kwargs.get("_raise_exceptions_for_connection_errors", True):
            raise
        return None
    return None if path is None else str(path)
