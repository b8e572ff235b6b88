"""Runs of `Trainer` in several processes that fail, are stopped or are killed."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from gptrio import GptrioWarning, Trainer, TrainerCallback
from gptrio.training import checkpoint, saved_state
from tests.unit.training.rank_runs import LM, as_bytes, rows_for, trainer_of


def files(path: Path) -> list[str]:
    """Names in a folder, hidden ones too."""
    return sorted(each.name for each in path.iterdir())


def told(act: Callable[[], Any]) -> tuple[list[str], str]:
    """The warnings of this package, and the error, that a call ends with."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error = ""
        try:
            act()
        except (Exception, SystemExit) as raised:
            error = f"{type(raised).__name__}: {raised}"
    return [str(each.message) for each in caught if issubclass(each.category, GptrioWarning)], error


class Failing(Trainer):
    """Cannot write the files of one rank at some updates."""

    failing_rank, failing_steps = 1, (2,)

    def _write_checkpoint(self, folder: Path) -> None:
        if self.args.process_index == self.failing_rank and self.state.global_step in self.failing_steps:
            raise OSError(28, "No space left on device")
        super()._write_checkpoint(folder)


class FailingTwice(Failing):
    """Cannot write two checkpoints of one after another."""

    failing_steps = (3, 4)


def fail_to_save(path: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """A run with one save that fails on rank 1, and one with two."""
    found: dict[str, Any] = {}
    for cls in (Failing, FailingTwice):
        folder = path / cls.__name__
        trainer = trainer_of(folder, cls=cls, save_strategy="steps", save_steps=1, **changes)
        found[cls.__name__] = (*told(trainer.train), trainer.state.global_step)
    return found


class Interrupt(TrainerCallback):
    """Gets a SIGTERM on rank 1 alone."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2 and args.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)


class StopOnRankOne(TrainerCallback):
    """Stops the training on rank 1 alone, as a clock would."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step == 4 and args.process_index == 1


def stop_unevenly(path: Path) -> dict[str, Any]:
    """What a signal, and a callback, on rank 1 alone do."""
    found: dict[str, Any] = {}
    for callback in (Interrupt, StopOnRankOne):
        folder = path / callback.__name__
        trainer = trainer_of(folder, callbacks=[callback], save_strategy="steps", save_steps=100)
        found[callback.__name__] = (told(trainer.train)[1], trainer.state.global_step)
    return found


def refuse(path: Path) -> dict[str, Any]:
    """What is said of set-ups that do not fit."""
    rank, found = int(os.environ["RANK"]), {}
    wrong: dict[str, dict[str, Any]] = {
        "rows": {"train_dataset": rows_for(LM, 10 + 2 * rank)},
        "arguments": {"gradient_accumulation_steps": 1 + rank, "seed": rank},
        "model": {"hidden_size": 16 + 16 * rank},
        "batch": {"auto_find_batch_size": True},
        "split": {"accelerator_config": {"split_batches": True}},
        "dispatch": {"accelerator_config": {"dispatch_batches": True}},
        "hybrid": {"fsdp": "hybrid_shard"},
        "size": {"fsdp": "full_shard", "fsdp_config": {"min_num_params": 1000}},
        "setting": {"fsdp": "full_shard", "fsdp_config": {"ofload_params": True}},
        "blocks": {"fsdp": "full_shard", "fsdp_config": {"transformer_layer_cls_to_wrap": "Blok"}},
        "optimizer": {"fsdp": "full_shard", "optim": "adafactor"},
    }
    for name, changes in wrong.items():
        found[name] = told(lambda changes=changes: trainer_of(path / "wrong", **changes).train())
    idle, _ = told(lambda: trainer_of(path / "idle", fsdp="full_shard", fsdp_config={"use_orig_params": True}))
    found["idle"] = idle
    divided = trainer_of(path / "divided", fsdp="full_shard", max_steps=1)
    with torch.no_grad():
        divided.model.lm_head.weight[0, 0] = float("nan")
    found["divided nan"] = told(divided.train)
    found["save"] = told(lambda: divided.model.save_pretrained(path / "divided"))
    broken = trainer_of(path / "broken")
    if rank == 1:
        with torch.no_grad():
            broken.model.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")
    broken.accelerator.prepare_model = lambda model, **options: model  # else rank 0's weights go to all
    broken.accelerator.no_sync = lambda model: nullcontext()
    found["nan"] = told(broken.train)
    return found


class Blocked(Trainer):
    """Stops for ever at a place within its second save, on every rank."""

    place = ""

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        if self.state.global_step == 2 and self.place:
            places = {"files": (saved_state, "save_snapshot"), "name": (checkpoint, "_publish")}
            module, name = places.get(self.place, (saved_state, "save_snapshot"))
            if self.place in places or self.args.process_index == 1:
                setattr(module, name, self._wait)
        super()._save_checkpoint(model, trial)

    def _wait(self, *args: Any, **options: Any) -> None:
        Path(self.args.output_dir, "blocked").touch()
        time.sleep(600)


def save_until_killed(path: Path, place: str, changes: dict[str, Any]) -> bytes:
    """Train with dropout from the newest checkpoint, if there is one; the second save lasts for ever at a place."""
    Blocked.place = place
    changes = {"dropout": 0.2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, **changes}
    trainer = trainer_of(path, cls=Blocked, **changes)
    trainer.train(resume_from_checkpoint=any(path.glob("checkpoint-*")) or None)
    return as_bytes(trainer)
