"""Files of hub repositories: impossible names, and what the hub's answers become."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptrio import downloads
from gptrio.errors import CheckpointNotFoundError
from gptrio.hub import HubOptions


@pytest.mark.parametrize("name", ["", "./no/such/folder", "/no/such", "a/b/c", "spaces in name"])
def test_impossible_repository_id(name: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match="neither an existing folder nor a possible hub repository id"):
        HubOptions().locate(name, "config.json")


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.txt").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name in ("model.txt", str(tmp_path / "model.txt")):
        with pytest.raises(CheckpointNotFoundError, match="is a file; give the folder that holds it"):
            HubOptions(local_files_only=True).locate(name, "config.json")
        with pytest.raises(CheckpointNotFoundError, match="is a file; give the folder that holds it"):
            HubOptions(local_files_only=True).list_folder(name, "templates")


def test_hub_answers_become_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    import requests
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    def refuse(kind: type[Exception]) -> None:
        def download(*args: object, **kwargs: object) -> None:
            raise kind("404 from the hub", response=requests.Response())

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(downloads, "_why_unreachable", lambda url, options: None)
    refuse(RepositoryNotFoundError)
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json of 'x/y' \(revision main\).*404.*token"):
        HubOptions().find("x/y", "config.json")
    refuse(EntryNotFoundError)
    with pytest.raises(CheckpointNotFoundError, match=r"'x/y' \(revision main\) has no file config\.json"):
        HubOptions().locate("x/y", "config.json")
    assert HubOptions().find("x/y", "config.json") is None
