"""Checkpoints of a training run, by orbax: written beside the run, and there only once they are complete."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import jax
import orbax.checkpoint as ocp

from gptrio.errors import CheckpointFormatError
from gptrio.hub import folder_to_write
from gptrio.jax.training.manifest import damage, write_manifest
from gptrio.jax.training.step import TrainState

_ITEM = "default"  # orbax's folder for the one item of a step


class _Handler(ocp.StandardCheckpointHandler):
    """Adds the manifest to what it writes, before orbax gives the folder its final name."""

    def finalize(self, directory: Any) -> None:
        """Called by orbax once all arrays are written."""
        super().finalize(directory)
        if jax.process_index() == 0:
            write_manifest(Path(directory))


@ocp.args.register_with_handler(_Handler, for_save=True)
class _Save(ocp.args.StandardSave):
    pass


@ocp.args.register_with_handler(_Handler, for_restore=True)
class _Restore(ocp.args.StandardRestore):
    pass


class TrainCheckpoints:
    """The newest training states in a folder; a process that is killed while it saves leaves the earlier ones whole.

    Use it in a `with` statement, which waits for the last save.

    Args:
        folder: made if need be.
        keep: number of states that are kept.

    Raises:
        CheckpointError: the folder is a file.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2) -> None:
        self.folder = folder_to_write(Path(folder).absolute(), "for training states")
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=_Handler())

    def save(self, state: TrainState) -> None:
        """Begin to save a state under its step; training may go on. An earlier save is waited for."""
        self._manager.save(int(state.step), args=_Save(state))

    def restore(self, state: TrainState) -> TrainState | None:
        """The newest state that was saved whole; None if there is none.

        Args:
            state: of a new run with the same model and optimizer; says where on the devices each array goes.

        Raises:
            CheckpointFormatError: the files are damaged, or of another model or optimizer.
        """
        self._manager.wait_until_finished()
        step = self._manager.latest_step()
        if step is None:
            return None
        if wrong := damage(self._place(step) / _ITEM):
            raise CheckpointFormatError(f"{self._place(step)} is damaged ({wrong}){self._out(step)}")
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        try:
            is_same = _shapes(self._manager.item_metadata(step).tree) == _shapes(state)
            restored = self._manager.restore(step, args=_Restore(like)) if is_same else None
        except Exception as error:  # orbax and tensorstore raise many types
            raise CheckpointFormatError(
                f"{self._place(step)} is damaged ({_first_line(error)}){self._out(step)}"
            ) from error
        if not is_same:
            raise CheckpointFormatError(
                f"{self._place(step)} is of another model or optimizer; choose another folder, or build those"
            )
        return cast(TrainState, restored)

    def _place(self, step: int) -> Path:
        return self.folder / str(step)

    def _out(self, step: int) -> str:
        earlier = [other for other in self._manager.all_steps() if other != step]
        return f"; remove it to {f'resume from step {max(earlier)}' if earlier else 'begin anew'}"

    def __enter__(self) -> TrainCheckpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the last save."""
        self._manager.wait_until_finished()
        self._manager.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each array by its path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): value.shape for path, value in leaves}


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]:.200}" if lines else type(error).__name__
