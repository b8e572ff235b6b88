"""Folders of checkpoints that appear as a whole: written beside their place, with the tokenizer's files, then moved."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gptrio.checkpoint.shards import stale_files
from gptrio.errors import CheckpointError, CheckpointNotFoundError, GptrioError, warn
from gptrio.hub import HubOptions, flush_to_disk
from gptrio.utils.file_names import CONFIG_NAME, SAFE_WEIGHTS_NAME

_COPIED = (
    *("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja"),
)
_TEMPLATES = "additional_chat_templates"


def check_target(target: Path, overwrite: bool) -> None:
    """Raise CheckpointError unless a folder can be written: it is new, empty, or to be overwritten."""
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; give a folder to write")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise CheckpointError(f"{target} exists and is not empty; give another folder, or overwrite=True")


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """Yield a new folder on the file system of the target, which is removed at the end if it has not been moved."""
    # in a target that exists: it may be where a file system is mounted, or lie in a folder that is read-only
    parent = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.exists())
    try:
        place = tempfile.TemporaryDirectory(dir=parent, prefix=f".{target.name}.")
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise CheckpointError(f"{target} cannot be written: {parent}: {reason}; give another folder") from error
    with place as outer:
        folder = Path(outer, "model")
        folder.mkdir()  # with the permissions of a new folder, unlike the one around it
        try:
            yield folder
        except OSError as error:
            raise _at_target(error, folder, target) from error


def _at_target(error: OSError, folder: Path, target: Path) -> OSError:
    """An error that names the file of the target where it names one of the folder that is to become it."""
    if isinstance(error, GptrioError):
        error.args = (str(error).replace(str(folder), str(target)),)
    elif error.filename is not None and error.strerror is not None:
        name = str(error.filename).replace(str(folder), str(target))
        return type(error)(error.errno, error.strerror, name)
    return error


def copy_tokenizer(name: str, folder: Path, is_required: bool) -> None:
    """Copy the files of a tokenizer, which may not load, with a warning, unless it is required.

    Raises:
        CheckpointNotFoundError: a tokenizer is required, and there is none.
        CheckpointError, TokenizationError: a tokenizer is required, and it does not load.
    """
    from gptrio import AutoTokenizer

    options = HubOptions()
    files = list(_COPIED)
    if options.find(name, "tokenizer_config.json") is not None:
        files += [f"{_TEMPLATES}/{file}" for file in options.list_folder(name, _TEMPLATES)]
    found = {file: path for file in files if (path := options.find(name, file)) is not None}
    if is_required and not found:
        raise CheckpointNotFoundError(f"{name!r} has no tokenizer: none of {', '.join(_COPIED)}")
    for file, path in found.items():
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / file)
    try:
        if found:
            AutoTokenizer.from_pretrained(name)
    except GptrioError as error:
        if is_required:
            raise
        warn(f"the tokenizer of {name} was copied as it is, and does not load: {error}")


def move_folder(folder: Path, target: Path) -> list[Path]:
    """Move a folder to its place: as a whole to a new one; else its files, in place of those of the target's model."""
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    for path in (*(folder / name for name in names), folder):
        flush_to_disk(path)
    if target.is_dir():
        _exchange(folder, target, names)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.replace(target)
    flush_to_disk(target.parent)
    return [target / name for name in names]


def _exchange(folder: Path, target: Path, names: list[Path]) -> None:
    """Move files into a folder; its weights and files of the same names go, and on an error or Ctrl-C come back.

    Until all is done these wait in a hidden folder. The configuration leaves first and comes last: what a process that
    is killed has left is no model, rather than the weights of one with the configuration of another.
    """
    stale = [Path(path.name) for path in stale_files(target, SAFE_WEIGHTS_NAME, None, keep=set())]
    old = {name for name in (*names, *stale) if os.path.lexists(target / name)}
    aside = Path(tempfile.mkdtemp(dir=target, prefix=".replaced."))
    moves = [(target / name, aside / name) for name in sorted(old, key=lambda name: name.name != CONFIG_NAME)]
    moves += [(folder / name, target / name) for name in sorted(names, key=lambda name: name.name == CONFIG_NAME)]
    try:
        for source, place in moves:
            place.parent.mkdir(exist_ok=True)
            source.replace(place)
        flush_to_disk(target)
    except BaseException:
        for source, place in reversed(moves):
            if os.path.lexists(place) and not os.path.lexists(source):
                place.replace(source)
        shutil.rmtree(aside)
        raise
    shutil.rmtree(aside)
