"""The folder of a running training: no second run writes into it, and a save that fails once does not end the run."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from gptrio.errors import CheckpointError, warn
from gptrio.training import ranks
from gptrio.training.checkpoint import find_checkpoint, sweep, write_checkpoint

if sys.platform != "win32":
    import fcntl

_LOCK = ".training.lock"
_held: set[Path] = set()  # locks of a process do not exclude each other


class RunFolder:
    """Where a run keeps its checkpoints; entered with `with`, which locks it and clears what a killed run left.

    With several ranks of torch.distributed, each has one and makes the same calls; the writer holds the lock.

    Args:
        path: made if need be.
        is_writer: whether this rank makes folders and completes checkpoints: rank 0 by default, or one on each machine.

    Raises:
        CheckpointError: on entry, when another training holds the folder, or it cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], is_writer: bool | None = None) -> None:
        self.path = Path(os.path.realpath(path))
        self.is_writer = ranks.is_first() if is_writer is None else is_writer
        self._lock: TextIO | None = None
        self._failures = 0  # saves in a row that failed

    def __enter__(self) -> RunFolder:
        ranks.together(self._enter, self.is_writer)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is None:
            return
        try:
            with suppress(OSError):  # a file that nobody holds does no harm
                (self.path / _LOCK).unlink()  # before it is given up, as another may hold it then
        finally:
            self._lock.close()
            self._lock = None
            _held.discard(self.path)

    def latest(self) -> Path | None:
        """The newest whole checkpoint, the same on every rank; see `find_checkpoint`."""
        found: list[Path | None] = [None]

        def find() -> None:
            found[0] = find_checkpoint(self.path)

        ranks.together(find, ranks.is_first())
        return ranks.from_first(found[0])

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        facts: Mapping[str, Any],
    ) -> Path | None:
        """Write `checkpoint-STEP`.

        Args:
            step: number of updates so far.
            write: writes the files into the folder that it is given, on each rank its own.
            facts: see `write_checkpoint`; "step" and "world_size" are added.

        Returns:
            The checkpoint; None if it could not be written, of which a warning tells.

        Raises:
            CheckpointError: it could not be written, as the one before.
        """
        target = self.path / f"checkpoint-{step}"
        try:
            facts = {**facts, "step": step, "world_size": ranks.world_size()}
            write_checkpoint(target, write, facts, self.is_writer)
        except CheckpointError as error:
            self._failures += 1
            if self._failures > 1:
                raise
            warn(f"{error}. The training goes on; it will stop if the next checkpoint fails, too")
            return None
        self._failures = 0
        return target

    def _enter(self) -> None:
        try:
            os.makedirs(self.path, exist_ok=True)
            self._lock = self._locked()
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{self.path} cannot hold checkpoints: {error}") from error
        _held.add(self.path)
        sweep(self.path, is_locked=sys.platform != "win32")

    def _locked(self) -> TextIO:
        """The lock's file, open and locked; a process that ends in any way gives the lock up."""
        path = self.path / _LOCK
        while self.path not in _held:  # where this process holds it, opening and closing the file would give it up
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - stays open as long as the lock is held
            try:
                _lock(file)
                if _is_same_file(path, file):  # else its holder removed it in between
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {socket.gethostname()}")
                    file.flush()
                    return file
            except BlockingIOError:
                file.seek(0)
                holder = file.read()
                file.close()
                raise self._taken(holder) from None
            except BaseException:
                file.close()
                raise
            file.close()
        raise self._taken("this process")

    def _taken(self, holder: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is in use by another training ({holder or 'unknown'}); choose another output_dir, or stop "
            "that one"
        )


def _lock(file: TextIO) -> None:
    """Lock a file for this process alone, not for those that it starts; raises BlockingIOError if another holds it."""
    if sys.platform == "win32":
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(error.errno, error.strerror) from error
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
        warn(f"{file.name} cannot be locked on this file system; do not let two trainings write into its folder")


def _is_same_file(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
