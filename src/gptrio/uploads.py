"""Uploads saved files to a hub repository, with a commit message, on a branch, and with a model card.

`huggingface_hub` is imported when something is pushed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

from gptrio.hub import pop_token

_CARD = """---
library_name: transformers
tags: []
---

# Model card of {repo_id}

Written by gptrio, which saved these files. Describe here what they are for, and what they were trained on.
"""
_NOUNS = ("Model", "Config", "Tokenizer")  # in the names of classes, for commit messages as in Transformers


class Saves(Protocol):
    """What can be saved into a folder."""

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> object:
        """Write the object's files into a folder."""


class Upload:
    """Uploads the files of a folder that were written after the upload began.

    Args:
        folder: made if need be.
        repo_id, private, token, organization: see `Pushable.push_to_hub`; "name" is a repository of the user's own.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        repo_id: str,
        private: bool | None = None,
        token: str | bool | None = None,
        organization: str | None = None,
    ) -> None:
        from huggingface_hub import HfApi

        if organization is not None and not repo_id.startswith(organization):
            repo_id = f"{organization}/{repo_id.split('/')[-1]}"
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._token = token
        self._api = HfApi(token=token)
        self.repo_id: str = self._api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        self._before = _times(self.folder)

    @classmethod
    def of_save(cls, folder: str | os.PathLike[str], kwargs: MutableMapping[str, Any]) -> Upload:
        """Begin for `save_pretrained(folder, push_to_hub=True, **kwargs)`, and take what it needs out of `kwargs`."""
        repo_id = kwargs.pop("repo_id", None) or Path(folder).name
        names = ("private", "organization")
        return cls(folder, repo_id, token=pop_token(kwargs), **{n: kwargs.pop(n) for n in names if n in kwargs})

    def write_card(self, tags: Iterable[str] = (), ignore_metadata_errors: bool = False) -> None:
        """Write the repository's model card, or a new one, with more tags into the folder."""
        from huggingface_hub import ModelCard
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

        try:
            card = ModelCard.load(
                self.repo_id, token=cast(Any, self._token), ignore_metadata_errors=ignore_metadata_errors
            )
        except (EntryNotFoundError, RepositoryNotFoundError):
            card = ModelCard(_CARD.format(repo_id=self.repo_id))
        if tags:
            card.data.tags = list(dict.fromkeys([*(card.data.tags or ()), *tags]))
        card.save(self.folder / "README.md")

    def finish(
        self,
        saved: object,
        commit_message: str | None = None,
        commit_description: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload what is new in the folder and return the commit's address.

        Args:
            saved: what was saved; the default message names its class.
            commit_message, commit_description, revision, create_pr: see `Pushable.push_to_hub`.
        """
        if revision is not None and not revision.startswith("refs/pr"):
            self._make_branch(revision, create_pr)
        from huggingface_hub import CommitOperationAdd

        changed = [name for name, time in _times(self.folder).items() if time > self._before.get(name, -1)]
        paths = [path for name in changed for path in (self.folder / name, *(self.folder / name).rglob("*"))]
        return self._api.create_commit(  # a text, with the parts of the address as attributes
            repo_id=self.repo_id,
            operations=[
                CommitOperationAdd(path.relative_to(self.folder).as_posix(), path) for path in paths if path.is_file()
            ],
            commit_message=commit_message or _message(type(saved).__name__),
            commit_description=commit_description,
            create_pr=create_pr,
            revision=revision,
        )

    def _make_branch(self, revision: str, create_pr: bool) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            self._api.create_branch(repo_id=self.repo_id, branch=revision, exist_ok=True)
        except HfHubHTTPError as error:  # a pull request may be opened where no branch may be made
            if not (create_pr and getattr(error.response, "status_code", None) == 403):
                raise


class Pushable:
    """`push_to_hub`, for classes that have `save_pretrained`."""

    def push_to_hub(
        self: Saves,
        repo_id: str,
        use_temp_dir: bool | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        max_shard_size: int | str | None = "5GB",
        create_pr: bool = False,
        safe_serialization: bool = True,
        revision: str | None = None,
        commit_description: str | None = None,
        tags: list[str] | str | None = None,
        *,
        organization: str | None = None,
        use_auth_token: str | bool | None = None,
        ignore_metadata_errors: bool = False,
        **save_options: Any,
    ) -> str:
        """Save and upload the files, with a model card, to a repository of the hub; return the commit's address.

        Args:
            repo_id: "user/name" on the hub, created if it does not exist.
            use_temp_dir: save into a temporary folder; if None, unless there is a folder named like the repository.
            commit_message, commit_description: texts of the commit; "Upload model", "Upload config" and so on.
            private: make a new repository private.
            token: hub access token.
            max_shard_size, safe_serialization: of a model's weights.
            create_pr: open a pull request instead of committing.
            revision: branch to commit to, made if need be.
            tags: added to the repository's model card.
            organization, use_auth_token: older names of a part of `repo_id`, and of `token`.
            ignore_metadata_errors: read a model card whose metadata is broken.
            save_options: of `save_pretrained`.
        """
        from tempfile import TemporaryDirectory

        token = pop_token({"token": token, "use_auth_token": use_auth_token})
        name = repo_id.split("/")[-1]
        temporary = not Path(name).is_dir() if use_temp_dir is None else use_temp_dir
        context: AbstractContextManager[str] = TemporaryDirectory() if temporary else nullcontext(name)
        with context as folder:
            upload = Upload(folder, repo_id, private, token, organization)
            self.save_pretrained(
                folder, max_shard_size=max_shard_size, safe_serialization=safe_serialization, **save_options
            )
            upload.write_card([tags] if isinstance(tags, str) else tags or (), ignore_metadata_errors)
            return upload.finish(self, commit_message, commit_description, revision, create_pr)


def _times(folder: Path) -> dict[str, int]:
    """When each file and folder in a folder was last changed."""
    return {entry.name: entry.stat().st_mtime_ns for entry in folder.iterdir()}


def _message(class_name: str) -> str:
    noun = next((noun.lower() for noun in _NOUNS if noun in class_name), class_name)
    return f"Upload {noun}"
