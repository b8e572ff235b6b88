"""Finding files: folders, packaged models, the hub's cache, and the errors when there is nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptrio import hub
from gptrio.errors import CheckpointFormatError, CheckpointNotFoundError, UnsafeCheckpointError
from gptrio.hub import HubOptions, local_folder, read_json, replace_file, write_text

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "inner" / "config.json").write_text("[]")
    return tmp_path


@pytest.fixture
def cached_repo(tmp_path: Path) -> Path:
    """A hub cache that holds `someone/tiny`, as huggingface_hub lays it out."""
    repo = tmp_path / "models--someone--tiny"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text('{"cached": true}')
    return tmp_path


def test_file_of_a_folder(model_folder: Path) -> None:
    assert HubOptions().locate(model_folder, "config.json") == model_folder / "config.json"
    assert (
        HubOptions(subfolder="inner").locate(str(model_folder), "config.json") == model_folder / "inner" / "config.json"
    )


def test_optional_file_missing_in_a_folder_is_none(model_folder: Path) -> None:
    assert HubOptions().find(model_folder, "merges.txt") is None


def test_required_file_missing_in_a_folder_names_file_and_content(model_folder: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no file merges\.txt in folder .*it holds: config\.json, inner"):
        HubOptions().locate(model_folder, "merges.txt")


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "inner/../../config.json"])
def test_file_outside_the_folder_is_refused(model_folder: Path, name: str) -> None:
    with pytest.raises(UnsafeCheckpointError, match="outside"):
        HubOptions().locate(model_folder, name)
    with pytest.raises(UnsafeCheckpointError, match="outside"):
        HubOptions(subfolder="..").locate(model_folder, "config.json")


def test_packaged_name(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_ASSETS", model_folder)
    assert HubOptions().locate("gptrio/inner", "config.json") == model_folder / "inner" / "config.json"
    for name in ("gptrio/..", "gptrio/absent", "gptrio/"):
        with pytest.raises(CheckpointNotFoundError, match=f"no packaged model '{name}'; there are: inner"):
            local_folder(name)


def test_cached_repository_opens_offline(cached_repo: Path) -> None:
    path = HubOptions(cache_dir=cached_repo, local_files_only=True).locate("someone/tiny", "config.json")
    assert path is not None
    assert path.read_text() == '{"cached": true}'
    pinned = HubOptions(cache_dir=cached_repo).pinned_to(path)
    assert pinned.revision == COMMIT
    assert pinned.locate("someone/tiny", "config.json") == path
    assert HubOptions().pinned_to(Path("/models/snapshots/mine/config.json")) == HubOptions()


def test_optional_file_missing_in_the_cache_is_none(cached_repo: Path) -> None:
    arguments = {"cache_dir": cached_repo, "local_files_only": True}
    assert HubOptions(**arguments).find("someone/tiny", "merges.txt") is None


def test_required_file_missing_in_the_cache_names_everything(cached_repo: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"merges\.txt of 'someone/tiny' \(revision v2\).*local_files"):
        HubOptions(cache_dir=cached_repo, local_files_only=True, revision="v2").locate("someone/tiny", "merges.txt")


def test_options_are_taken_out_of_kwargs() -> None:
    kwargs = {"revision": "v1", "token": None, "subfolder": None, "num_labels": 3}
    assert HubOptions.pop_from(kwargs) == HubOptions(revision="v1")
    assert kwargs == {"num_labels": 3}


def test_import_is_light() -> None:
    code = (
        "import sys, gptrio.hub, gptrio.uploads; sys.exit('huggingface_hub' in sys.modules or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("depth", [51, 400, 100_000])
@pytest.mark.parametrize("brackets", ['{"a":}', '{"a":[]}'])
def test_settings_nested_without_end_are_refused(tmp_path: Path, depth: int, brackets: str) -> None:
    path, half = tmp_path / "config.json", brackets.index(":") + 1 + brackets.count("[")
    path.write_text(brackets[:half] * depth + "1" + brackets[half:] * depth)
    with pytest.raises(CheckpointFormatError, match=r"nested more than 50 deep|not valid JSON"):
        read_json(path)


def test_settings_as_deep_as_allowed_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a":' * 50 + "1" + "}" * 50)
    content = read_json(tmp_path / "config.json")
    for _ in range(50):
        content = content["a"]
    assert content == 1


def test_replace_file_leaves_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    target = tmp_path / "config.json"
    with replace_file(target) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), replace_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
@pytest.mark.parametrize("old", [None, "old"])
def test_a_full_disk_names_the_file_and_what_is_left_of_it(tmp_path: Path, old: str | None) -> None:
    target = tmp_path / "out.json"
    if old is not None:
        target.write_text(old, encoding="utf-8")
    kept = "nothing of it was left" if old is None else "the file is as it was before"
    with pytest.raises(OSError, match=kept) as caught, replace_file(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(target) and caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ([] if old is None else ["out.json"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is full")
def test_a_full_device_is_named() -> None:
    with pytest.raises(OSError, match="/dev/full"):
        write_text("/dev/full", "text")


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(tmp_path / "link", "größer")
        assert os.read(reader, 100) == "größer".encode()
    finally:
        os.close(reader)
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]
