"""The part of `Trainer` that saves and restores the state of a run beside the model: each method can be overridden."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptrio.training import upstream
from gptrio.training.parts import TrainerParts
from gptrio.training.snapshot import Position, load_snapshot, save_snapshot


class SavedStateMixin(TrainerParts):
    """The optimizer with the schedule, the scaler of float16 and the random generators, by a pair of methods each.

    Within the save of a checkpoint, the methods that save name what becomes part of it; the files are written, flushed
    and listed in the manifest once all have been called, and those that a subclass writes with them. Called elsewhere,
    as by a subclass with a `_save_checkpoint` of its own, they write the files of Transformers' Trainer at once. Both
    kinds of checkpoints are resumed from; what a subclass does not save begins anew.
    """

    _unwritten: tuple[Path, dict[str, Any]] | None = None  # folder of the checkpoint being written, and its parts

    def _save_snapshot(self, folder: Path, extra: Mapping[str, Any]) -> None:
        """Write the state of the run into the folder of a checkpoint; each rank calls this."""
        parts: dict[str, Any] = {}
        self._unwritten = (folder, parts)
        try:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
        finally:
            self._unwritten = None
        save_snapshot(
            folder,
            model=self.model,
            optimizer=parts.get("optimizer"),
            scheduler=parts.get("scheduler"),
            scaler=parts.get("scaler"),
            position=self._position,
            extra=extra,
            is_writer=self.args.should_save,
            with_random="random" in parts,
        )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the optimizer and the schedule."""
        parts = self._parts_of(output_dir)
        if parts is not None:
            parts |= {"optimizer": self.optimizer, "scheduler": self.lr_scheduler}
        else:
            self._save_upstream(output_dir, optimizer=self.optimizer, scheduler=self.lr_scheduler)

    def _save_scaler(self, output_dir: str) -> None:
        """Save the scaler of losses, if there is one."""
        parts, scaler = self._parts_of(output_dir), getattr(self.accelerator, "scaler", None)
        if parts is not None:
            parts["scaler"] = scaler
        elif scaler is not None:
            self._save_upstream(output_dir, scaler=scaler)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random generators of this process."""
        parts = self._parts_of(output_dir)
        if parts is not None:
            parts["random"] = True
        else:
            upstream.save_random_states(Path(output_dir))

    def _parts_of(self, output_dir: str) -> dict[str, Any] | None:
        """Parts of the checkpoint that is being written into a folder; None if none is."""
        folder, parts = self._unwritten or (None, None)
        return parts if folder == Path(output_dir) else None

    def _save_upstream(self, output_dir: str, **objects: Any) -> None:
        upstream.save_states(Path(output_dir), self.model, is_writer=self.args.should_save, **objects)

    def _load_snapshot(self, folder: str) -> tuple[Position | None, dict[str, Any]]:
        """Restore what `load_snapshot` does, by the methods below where a subclass has its own."""
        names = ("_load_optimizer_and_scheduler", "_load_scaler", "_load_rng_state")
        own = [name for name in names if getattr(type(self), name) is not getattr(SavedStateMixin, name)]
        has_optimizer = "_load_optimizer_and_scheduler" not in own
        result = load_snapshot(
            Path(folder),
            model=self.model,
            optimizer=self.optimizer if has_optimizer else None,
            scheduler=self.lr_scheduler if has_optimizer else None,
            scaler=getattr(self.accelerator, "scaler", None) if "_load_scaler" not in own else None,
            with_random="_load_rng_state" not in own,
        )
        for name in own:
            getattr(self, name)(folder)
        return result

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore the optimizer and the schedule alone; None leaves them as they are."""
        self._load_parts(checkpoint, optimizer=self.optimizer, scheduler=self.lr_scheduler)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Restore the scaler of losses alone, if there is one; None leaves it as it is."""
        self._load_parts(checkpoint, scaler=getattr(self.accelerator, "scaler", None))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random generators alone; None leaves them as they are."""
        self._load_parts(checkpoint, with_random=True)

    def _load_parts(self, checkpoint: str | None, with_random: bool = False, **parts: Any) -> None:
        if checkpoint is not None:
            objects = {"optimizer": None, "scheduler": None, "scaler": None, **parts}
            load_snapshot(Path(checkpoint), model=self.model, with_random=with_random, **objects)
