"""The files of a model: where they are (a folder, the package, the hub's cache, the hub), read and written safely.

`huggingface_hub` takes longer to import than the rest of a start-up, so it is imported only when a name is neither a
folder nor packaged.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, cast

from gptrio.errors import CheckpointFormatError, CheckpointNotFoundError, OptionError, UnsafeCheckpointError

_PACKAGED_PREFIX = "gptrio/"
_COMMIT = re.compile("[0-9a-f]{40}")
_ASSETS = Path(__file__).parent / "assets"


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
        """
        older = kwargs.pop("use_auth_token", None)
        if older is not None:
            if kwargs.get("token") is not None:
                raise OptionError("token and use_auth_token are both given; pass token alone, its newer name")
            kwargs["token"] = older
        found = {field.name: kwargs.pop(field.name, None) for field in fields(cls)}
        return cls(**{name: value for name, value in found.items() if value is not None})

    def as_kwargs(self) -> dict[str, Any]:
        """Return the options as keyword arguments, for `locate_file` and `from_pretrained`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def pinned_to(self, path: Path) -> HubOptions:
        """Return the options for more files of the commit that `path`, a file in the hub's cache, belongs to.

        They come from the cache without asking the hub again, and never from a newer commit.
        """
        commits = [commit for folder, commit in pairwise(path.parts) if folder == "snapshots"]
        return replace(self, revision=commits[-1]) if commits and _COMMIT.fullmatch(commits[-1]) else self

    def find(self, name_or_path: str | os.PathLike[str], filename: str) -> Path | None:
        """Return the path of a file of a model, or None if the model lacks it (see `locate_file`)."""
        return locate_file(name_or_path, filename, **self.as_kwargs(), required=False)

    def locate(self, name_or_path: str | os.PathLike[str], filename: str) -> Path:
        """Return the path of a file that a model must have (see `locate_file`)."""
        return cast(Path, locate_file(name_or_path, filename, **self.as_kwargs()))  # None only if not required


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


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload every file of a folder to a hub repository, created if it does not exist; return the commit's address.

    Args:
        folder: local folder.
        repo_id: "user/name" on the hub.
        private: make a new repository private.
        token: hub access token.
        revision: branch to commit to.
        commit_message, commit_description: texts of the commit.
        create_pr: open a pull request instead of committing.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo.repo_id,
        folder_path=os.fspath(folder),
        revision=revision,
        commit_message=commit_message,
        commit_description=commit_description,
        create_pr=create_pr,
    )
    return str(commit)


def save_and_push(save: Callable[[str], object], repo_id: str, **options: Any) -> str:
    """Call `save` on a temporary folder and push what it wrote there (`options` as for `push_folder`)."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        save(folder)
        return push_folder(folder, repo_id, **options)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON object that a file holds; raises CheckpointFormatError if it holds anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"no file {os.fspath(path)}") from error
    except (ValueError, RecursionError) as error:  # covers JSON and UTF-8
        raise CheckpointFormatError(f"{os.fspath(path)} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointFormatError(f"{os.fspath(path)} holds a {type(content).__name__}; expected a JSON object")
    return content


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
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    arguments = options.as_kwargs() | {"subfolder": None}  # already part of filename
    try:
        return Path(hf_hub_download(repo_id, filename, **arguments))
    except EntryNotFoundError as error:  # also raised for what an offline cache lacks
        if not required:
            return None
        offline = isinstance(error, LocalEntryNotFoundError)
        raise CheckpointNotFoundError(_missing_message(repo_id, filename, options, offline)) from error
    except HFValidationError as error:
        raise CheckpointNotFoundError(
            f"{repo_id!r} is neither an existing folder nor a possible hub repository id ('name' or 'user/name')"
        ) from error
    except HfHubHTTPError as error:  # no such repository or revision, gated, server trouble
        raise CheckpointNotFoundError(
            f"cannot get {filename} of {repo_id!r} ({_revision(options)}): no such folder here, and the hub answered: "
            f"{str(error).strip()}. Check name and revision; a private or gated repository needs token=..."
        ) from error


def _missing_message(repo_id: str, filename: str, options: HubOptions, offline: bool) -> str:
    if not offline:
        return f"hub repository {repo_id!r} ({_revision(options)}) has no file {filename}; check revision and subfolder"
    reason = "local_files_only=True was given" if options.local_files_only else "the hub cannot be reached"
    return (
        f"file {filename} of {repo_id!r} ({_revision(options)}) is not in the hub cache and {reason}; no folder of "
        "that name exists either. Connect and try again, or give the path of a local folder"
    )


def _revision(options: HubOptions) -> str:
    return f"revision {options.revision or 'main'}"
