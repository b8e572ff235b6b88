"""`push_to_hub` and `save_pretrained(push_to_hub=True)`: the hub is sent what Transformers 4.56.2 sends it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import transformers
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

import gptrio
from tests.parity.generation import FAMILIES, pair_of_models
from tests.tiny_tokenizers import write_gpt2

KINDS = ("model", "config", "generation_config", "tokenizer")
OLD_CARD = "---\nlicense: mit\ntags:\n- old\n---\nText of the card.\n"


class Hub:
    """Takes the calls of one library in place of the hub's API."""

    def __init__(self, card: str | None = None, refuses_branches: bool = False) -> None:
        self.calls: list[Any] = []
        self.files: dict[str, bytes] = {}
        self.card, self.refuses_branches = card, refuses_branches

    def create_repo(self, repo_id: str, *, private: Any = None, exist_ok: bool = False, **_: Any) -> Any:
        self.calls.append(("repo", repo_id, private, exist_ok))
        owner = "" if "/" in repo_id else "me/"
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{owner}{repo_id}")

    def create_branch(self, *, repo_id: str, branch: str, exist_ok: bool = False, **_: Any) -> None:
        self.calls.append(("branch", repo_id, branch, exist_ok))
        if self.refuses_branches:
            response: Any = type("Response", (), {"status_code": 403, "headers": {}, "request": None})()
            raise HfHubHTTPError("no", response=response)

    def create_commit(self, repo_id: str, operations: Any, **options: Any) -> Any:
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()
        names = ("commit_message", "commit_description", "create_pr", "revision")
        told = {name: options.get(name) or None for name in names}
        self.calls.append(("commit", repo_id, sorted(self.files), told))
        return huggingface_hub.CommitInfo(
            commit_url="https://huggingface.co/me/x/commit/1", commit_message="", commit_description="", oid="1"
        )

    def load_card(self, repo_id: str, **_: Any) -> Any:
        if self.card is None:
            raise EntryNotFoundError("no card")
        return huggingface_hub.ModelCard(self.card)


def watch(monkeypatch: pytest.MonkeyPatch, hub: Hub, library: Any) -> list[Any]:
    """Put a hub in place of the one that a library talks to; the tokens that it was given."""
    tokens: list[Any] = []

    def watched(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if args and isinstance(args[0], huggingface_hub.HfApi):
                kwargs.setdefault("token", args[0].token)
                args = args[1:]
            tokens.append(kwargs.get("token"))
            return getattr(hub, name)(*args, **kwargs)

        return call

    for name in ("create_repo", "create_branch", "create_commit"):
        if library is transformers:
            monkeypatch.setattr(f"transformers.utils.hub.{name}", watched(name))
        else:
            monkeypatch.setattr(huggingface_hub.HfApi, name, watched(name))
    monkeypatch.setattr(huggingface_hub.ModelCard, "load", hub.load_card)
    return tokens


def thing(library: Any, kind: str, family: str, folder: Path) -> Any:
    model = pair_of_models(family)[0 if library is gptrio else 1]
    model.model_tags = None
    if kind == "tokenizer":
        write_gpt2(folder)
        return library.GPT2Tokenizer.from_pretrained(folder)
    return model if kind == "model" else getattr(model, kind)


def sent(
    monkeypatch: pytest.MonkeyPatch, library: Any, kind: str, family: str, folder: Path, hub: Hub, act: Any
) -> tuple[list[Any], dict[str, bytes], list[Any]]:
    """What `act`, called on an object in an empty folder of its own, sends to the hub."""
    place = folder / library.__name__
    (place / "work").mkdir(parents=True, exist_ok=True)
    item = thing(library, kind, family, place / "tokenizer")
    monkeypatch.chdir(place / "work")
    tokens = watch(monkeypatch, hub, library)
    act(item)
    return hub.calls, hub.files, tokens


PUSHES: list[dict[str, Any]] = [
    {},
    {"commit_message": "new", "private": True, "token": "secret", "commit_description": "why"},
    {"revision": "dev", "create_pr": True, "tags": ["a", "b"]},
    {"revision": "refs/pr/3"},
    {"max_shard_size": "20KB", "safe_serialization": False},
]


@pytest.mark.parametrize("options", PUSHES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pushes(
    family: str, kind: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jinja2")  # of Transformers' template of a card
    results = []
    for library in (gptrio, transformers):
        with monkeypatch.context() as patches:
            arguments = (patches, library, kind, family, tmp_path, Hub())
            results.append(sent(*arguments, lambda item: item.push_to_hub("me/tiny", **options)))
    (calls, files, tokens), (expected, theirs, their_tokens) = results
    assert calls == expected
    assert set(tokens) == set(their_tokens)
    cards = [huggingface_hub.ModelCard(content["README.md"].decode()).data for content in (files, theirs)]
    assert cards[0].tags == cards[1].tags
    assert cards[0].library_name == cards[1].library_name
    for name in {"config.json", "generation_config.json"} & set(theirs):
        mine, reference = json.loads(files[name]), json.loads(theirs[name])
        assert all(mine[key] == reference[key] for key in mine.keys() & reference.keys())


@pytest.mark.parametrize("kind", KINDS)
def test_saves_that_push_send_what_is_new(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(item: Any) -> None:
        os.mkdir("tiny")
        Path("tiny/notes.txt").write_text("from before")
        item.save_pretrained("tiny", push_to_hub=True, repo_id="me/other", commit_message="saved", private=True)
        item.save_pretrained("tiny", push_to_hub=True, token="t")

    results = []
    for library in (gptrio, transformers):
        with monkeypatch.context() as patches:
            results.append(sent(patches, library, kind, "gpt2", tmp_path, Hub(OLD_CARD), act))
    assert results[0][0] == results[1][0]
    assert results[0][2] == results[1][2]
    assert "notes.txt" not in results[0][1]
    if kind == "model":
        assert results[0][1]["README.md"] == results[1][1]["README.md"]


@pytest.mark.parametrize("use_temp_dir", [None, True, False])
def test_a_folder_named_like_the_repository_is_used(
    use_temp_dir: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(item: Any) -> None:
        os.mkdir("tiny")
        Path("tiny/notes.txt").write_text("from before")
        item.push_to_hub("me/tiny", use_temp_dir)
        calls.append(sorted(os.listdir("tiny")))

    calls: list[Any] = []
    results = []
    for library in (gptrio, transformers):
        with monkeypatch.context() as patches:
            results.append(sent(patches, library, "config", "gpt_neox", tmp_path, Hub(OLD_CARD), act))
    assert results[0][0] == results[1][0]
    assert calls[0] == calls[1]
    assert results[0][1]["README.md"] == results[1][1]["README.md"]


def test_tags_of_the_model_join_those_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(item: Any) -> None:
        item.add_model_tags(["mine", "old"])
        item.push_to_hub("me/tiny", tags="trained")

    results = []
    for library in (gptrio, transformers):
        with monkeypatch.context() as patches:
            results.append(sent(patches, library, "model", "gpt2", tmp_path, Hub(OLD_CARD), act))
    assert results[0][1]["README.md"] == results[1][1]["README.md"]


@pytest.mark.parametrize("create_pr", [True, False])
def test_a_pull_request_where_no_branch_may_be_made(
    create_pr: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(item: Any) -> None:
        if create_pr:
            item.push_to_hub("me/tiny", revision="dev", create_pr=True)
            return
        with pytest.raises(HfHubHTTPError):
            item.push_to_hub("me/tiny", revision="dev")

    results = []
    for library in (gptrio, transformers):
        with monkeypatch.context() as patches:
            hub = Hub(OLD_CARD, refuses_branches=True)
            results.append(sent(patches, library, "config", "gpt2", tmp_path, hub, act)[0])
    assert results[0] == results[1]


def test_what_is_returned_and_older_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(OLD_CARD)
    tokens = watch(monkeypatch, hub, gptrio)
    monkeypatch.chdir(tmp_path)
    commit = gptrio.GPT2Config().push_to_hub("tiny", organization="us", use_auth_token="t")
    assert isinstance(commit, str) and commit.oid == "1"  # type: ignore[attr-defined]  # of a CommitInfo
    assert hub.calls[0] == ("repo", "us/tiny", None, True)
    assert set(tokens) == {"t"}
    with pytest.raises(gptrio.OptionError, match="token and use_auth_token are both given"):
        gptrio.GPT2Config().push_to_hub("tiny", token="t", use_auth_token="u")
