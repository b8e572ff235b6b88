"""A layer over Python's file operations that stops at the n-th of them, as a full disk, a kill or a power cut would."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

_SYSTEM_CALLS = ("fsync", "rename", "replace", "mkdir", "unlink", "remove", "rmdir")


class Killed(BaseException):
    """What a process does after its end: nothing. Not an Exception, so that no handler of errors sees it."""


class FailingFiles:
    """Counts the operations that change files, and fails the one of a given number.

    Args:
        mode: "error" fails that one with ENOSPC; "kill" fails it and all later ones with `Killed`; "power cut" is a
            kill after which no file that was not flushed is whole.
        at: number of the operation, from 1; 0 only counts.
    """

    def __init__(self, mode: str, at: int) -> None:
        self.mode, self.at, self.count = mode, at, 0
        self._unflushed: set[int] = set()  # inodes

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand between Python and the files until the block ends."""
        with pytest.MonkeyPatch.context() as patch:
            for name in _SYSTEM_CALLS:
                patch.setattr(os, name, self._counted(getattr(os, name), is_flush=name == "fsync"))
            for module in builtins, io:
                patch.setattr(module, "open", self._open(io.open))
            patch.setattr(safetensors.torch, "serialize_file", self._serialize(safetensors.torch.serialize_file))
            yield

    def damage(self, folder: Path) -> None:
        """After a power cut: halve the files that were not flushed."""
        if self.mode == "power cut":
            for path in folder.rglob("*"):
                if path.is_file() and path.stat().st_ino in self._unflushed:
                    os.truncate(path, path.stat().st_size // 2)

    def _operation(self, partly: Callable[[], object] = lambda: None) -> None:
        """Count one; at the given number, do it `partly` and fail."""
        self.count += 1
        if self.count == self.at:
            partly()
            if self.mode == "error":
                raise OSError(errno.ENOSPC, "No space left on device")
        if 0 < self.at <= self.count and self.mode != "error":
            raise Killed

    def _counted(self, call: Callable[..., Any], is_flush: bool) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._operation()
            if is_flush:
                self._unflushed.discard(os.fstat(args[0]).st_ino)
            return call(*args, **kwargs)

        return counted

    def _open(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if "w" not in mode:
                return call(file, mode, *args, **kwargs)
            self._operation()
            opened = call(file, mode, *args, **kwargs)
            self._unflushed.add(os.fstat(opened.fileno()).st_ino)
            whole = opened.write

            def write(content: Any) -> int:
                self._operation(lambda: (whole(content[: len(content) // 2]), opened.flush()))
                return int(whole(content))

            opened.write = write
            return opened

        return counted

    def _serialize(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensors: Any, filename: Any, metadata: Any = None) -> None:
            self._operation()

            def write() -> None:
                call(tensors, filename, metadata=metadata)
                self._unflushed.add(os.stat(filename).st_ino)

            def write_half() -> None:
                write()
                os.truncate(filename, os.path.getsize(filename) // 2)

            self._operation(write_half)
            write()

        return counted
