"""Checkpoints of a run as folders that are there or not there: `checkpoint-N` never holds half of a save.

A save goes into a folder of the target's name in a temporary one beside it. Its files are flushed to the disk, the
manifest last; then the folder is moved to its place, and only after that are older checkpoints removed. Whenever the
process, the machine or the disk stops, the newest whole checkpoint is the new one or the one before.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gptrio.errors import CheckpointError, CheckpointFormatError, ProcessLostError, warn
from gptrio.hub import files_of, flush_to_disk
from gptrio.training import ranks
from gptrio.training.manifest import MANIFEST, verify_checkpoint, write_manifest

PREFIX_CHECKPOINT_DIR = "checkpoint"
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.tmp-(?P<pid>\d+)")
_TRASH = re.compile(r"\.trash-(?P<name>.+)-(?P<pid>\d+)")
_FEWEST = 2  # checkpoints that rotation leaves: the newest, and one to fall back on


def write_checkpoint(
    target: Path, write: Callable[[Path], None], facts: Mapping[str, Any], is_writer: bool | None = None
) -> None:
    """Write a checkpoint so that it is there as a whole or not at all; one of the same name is replaced.

    Files in a folder of that name that is no checkpoint become part of it.

    With several ranks of torch.distributed, each calls this, and writes files of its own into the same folder.

    Args:
        target: the folder, such as `output_dir/checkpoint-500`.
        write: writes the files into the folder that it is given.
        facts: "step", "world_size", and arguments that a resumed run is compared with; JSON values.
        is_writer: whether this rank makes and completes the folder: rank 0 by default, or one on each machine.

    Raises:
        CheckpointError: a file could not be written, on any rank; nothing is left of this save, and an older checkpoint
            of the same name is as before.
        ProcessLostError: another rank has ended; likewise.
    """
    target, is_writer = Path(os.path.abspath(target)), ranks.is_first() if is_writer is None else is_writer
    temporary = target.with_name(ranks.from_first(f".{target.name}.tmp-{os.getpid()}")) / target.name
    try:
        ranks.together(lambda: _make_empty(temporary), is_writer)
        ranks.together(lambda: write(temporary))
        ranks.together(lambda: _flush_all(temporary))
        ranks.together(lambda: _complete(temporary, target, facts), is_writer)
    except BaseException as error:
        if is_writer:
            shutil.rmtree(temporary.parent, ignore_errors=True)
        if isinstance(error, Exception) and not isinstance(error, ProcessLostError):
            raise CheckpointError(f"{target} could not be written: {error}") from error
        raise


def _make_empty(folder: Path) -> None:
    if folder.parent.exists():
        shutil.rmtree(folder.parent)
    os.makedirs(folder)


def _flush_all(folder: Path) -> None:
    for name in files_of(folder):
        flush_to_disk(folder / name)


def _complete(temporary: Path, target: Path, facts: Mapping[str, Any]) -> None:
    _take_in(target, temporary)
    write_manifest(temporary, facts)
    for folder in sorted((path for path in temporary.rglob("*") if path.is_dir()), reverse=True):
        flush_to_disk(folder)
    for folder in (temporary, temporary.parent):
        flush_to_disk(folder)
    _publish(temporary, target)


def _take_in(target: Path, temporary: Path) -> None:
    """Copy what a caller has put into a folder that is no checkpoint yet, such as weights of a part of its own."""
    if not target.is_dir() or any((target / name).exists() for name in (MANIFEST, "trainer_state.json")):
        return
    for name in files_of(target):
        copy = temporary / name
        if not copy.exists():
            os.makedirs(copy.parent, exist_ok=True)
            shutil.copy2(target / name, copy)
            flush_to_disk(copy)


def _publish(temporary: Path, target: Path) -> None:
    """Give a complete folder its name; a kill in between leaves it complete, and `sweep` then gives it its name."""
    trash = _move_to_trash(target) if target.exists() else None
    try:
        os.rename(temporary, target)
        flush_to_disk(target.parent)
    except BaseException:
        if not temporary.exists():
            os.rename(target, temporary)
        if trash is not None:
            os.rename(trash, target)
        raise
    for folder in (temporary.parent, trash):
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _move_to_trash(folder: Path) -> Path:
    """Take a folder its name away at once, as deleting it file by file would leave a broken one for a while."""
    trash = folder.with_name(f".trash-{folder.name}-{os.getpid()}")
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(folder, trash)
    return trash


def find_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint of a folder that is whole; warns of newer ones that are broken.

    Returns:
        None if the folder has no checkpoints, or does not exist.

    Raises:
        CheckpointFormatError: it has checkpoints, but none that is whole; the message says what is wrong with each.
    """
    faults = []
    for folder in reversed(sorted_checkpoints(output_dir)):
        try:
            verify_checkpoint(folder)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        if faults:
            warn(f"falling back to {folder}, as newer checkpoints are broken: {'; '.join(faults)}")
        return folder
    if faults:
        raise CheckpointFormatError(
            f"no checkpoint in {output_dir} is whole: {'; '.join(faults)}. Move them away to begin anew"
        )
    return None


def get_last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The checkpoint of a folder that has the highest number, whole or not; None if it has none.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"no folder {os.fspath(folder)}")
    found = sorted_checkpoints(folder)
    return os.path.join(folder, found[-1].name) if found else None


def rotate_checkpoints(
    output_dir: Path, limit: int | None, best: str | None, newest: str | os.PathLike[str] | None = None
) -> None:
    """Remove the oldest checkpoints above a limit, but never the best, and always leave two: one to fall back on.

    Args:
        output_dir: their folder.
        limit: how many are kept, the best among them; None or 0 keeps all.
        best: folder of the best checkpoint, if it is known.
        newest: the one that was written last, where checkpoints of higher numbers are from a run before.
    """
    if limit is None or limit <= 0:
        return
    found = sorted_checkpoints(output_dir)
    last = found[-1].name if newest is None and found else Path(newest or "").name
    by_age = [folder for folder in found if _number(folder.name) > _number(last)]
    by_age += [folder for folder in found if _number(folder.name) <= _number(last)]
    kept = {Path(best).name, last} if best else {last}
    surplus = len(by_age) - max(limit, _FEWEST)
    for folder in [folder for folder in by_age if folder.name not in kept][: max(surplus, 0)]:
        try:
            shutil.rmtree(_move_to_trash(folder))
        except OSError as error:
            warn(f"the old checkpoint {folder} could not be removed: {error}")


def sweep(output_dir: Path, is_locked: bool = False) -> None:
    """Remove what saves of dead processes left behind; a save that only lacks its name gets it.

    Args:
        output_dir: folder of the checkpoints.
        is_locked: no other process writes here, so that a living one of the same number is another program.
    """
    if not output_dir.is_dir():
        return
    for path in sorted(output_dir.iterdir()):
        match = _TEMPORARY.fullmatch(path.name) or _TRASH.fullmatch(path.name)
        if match is None or not path.is_dir() or not (is_locked or _is_dead(int(match["pid"]))):
            continue
        target = path.with_name(match["name"])
        if match.re is _TEMPORARY and not target.exists() and _is_whole(path / target.name):
            os.rename(path / target.name, target)
            flush_to_disk(output_dir)
        shutil.rmtree(path, ignore_errors=True)


def sorted_checkpoints(output_dir: str | os.PathLike[str], prefix: str = PREFIX_CHECKPOINT_DIR) -> list[Path]:
    """Folders named `PREFIX-N`, in the order of N."""
    if not os.path.isdir(output_dir):
        return []
    found = [path for path in Path(output_dir).iterdir() if _number(path.name, prefix) >= 0 and path.is_dir()]
    return sorted(found, key=lambda path: _number(path.name, prefix))


def _number(name: str, prefix: str = PREFIX_CHECKPOINT_DIR) -> int:
    match = re.fullmatch(rf"{re.escape(prefix)}-(\d+)", name)
    return int(match[1]) if match else -1


def _is_whole(folder: Path) -> bool:
    """Whether nothing but its name is missing: the manifest is written last."""
    try:
        verify_checkpoint(folder)
    except CheckpointError:
        return False
    return (folder / MANIFEST).is_file()


def _is_dead(pid: int) -> bool:
    """Whether no other process has this number; this process has begun nothing before it sweeps."""
    if pid == os.getpid() or os.name == "nt":  # where os.kill would end the process
        return pid == os.getpid()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it is another user's
        return False
    return False
