"""Subclasses of Trainer that save and restore its state in their own ways, run and resumed by both libraries."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from safetensors.torch import load_file

import gptrio
from tests.training_pair import arguments, assert_same_history, assert_same_weights, collate, pair_of, rows_for

LIBRARIES = (transformers, gptrio)


def adding(library: Any, seen: list[Any]) -> type:
    """Saves more than the trainer does, and notes the order."""

    class Trainer(library.Trainer):
        def _save_optimizer_and_scheduler(self, output_dir):
            seen.append(("optimizer", os.path.basename(output_dir), sorted(os.listdir(output_dir))[0]))
            super()._save_optimizer_and_scheduler(output_dir)
            torch.save({"step": self.state.global_step}, os.path.join(output_dir, "more.pt"))

        def _save_scaler(self, output_dir):
            seen.append(("scaler", os.path.basename(output_dir)))
            super()._save_scaler(output_dir)

        def _save_rng_state(self, output_dir):
            seen.append(("random", os.path.exists(os.path.join(output_dir, "more.pt"))))
            super()._save_rng_state(output_dir)

        def _load_optimizer_and_scheduler(self, checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None:
                seen.append(torch.load(os.path.join(checkpoint, "more.pt")))

        def _load_scaler(self, checkpoint):
            seen.append(("scaler", checkpoint is None))
            super()._load_scaler(checkpoint)

    return Trainer


def in_own_files(library: Any, seen: list[Any]) -> type:
    """Saves and restores the optimizer and the schedule without the trainer."""

    class Trainer(library.Trainer):
        def _save_optimizer_and_scheduler(self, output_dir):
            torch.save([part.state_dict() for part in self.parts()], os.path.join(output_dir, "own.pt"))

        def _load_optimizer_and_scheduler(self, checkpoint):
            if checkpoint is not None:
                seen.append(self.lr_scheduler.last_epoch)
                for part, state in zip(self.parts(), torch.load(os.path.join(checkpoint, "own.pt")), strict=True):
                    part.load_state_dict(state)

        def parts(self):
            return self.optimizer, self.lr_scheduler

    return Trainer


def in_files_of_the_reference(library: Any, seen: list[Any]) -> type:
    """Saves the optimizer and the schedule as the reference does, and leaves it to the trainer to find them."""

    class Trainer(library.Trainer):
        def _save_optimizer_and_scheduler(self, output_dir):
            torch.save(self.optimizer.state_dict(), os.path.join(output_dir, "optimizer.pt"))
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, "scheduler.pt"))
            seen.append(self.lr_scheduler.last_epoch)

    return Trainer


def leaving_out(library: Any, seen: list[Any]) -> type:
    """Saves neither the optimizer nor the random generators, as their files are large or in the way."""

    class Trainer(library.Trainer):
        def _save_optimizer_and_scheduler(self, output_dir):
            seen.append(self.state.global_step)

        def _save_rng_state(self, output_dir):
            pass

    return Trainer


def copied(library: Any, seen: list[Any]) -> type:
    """Has the reference's own methods with changes, as trainers of adapters and projectors do."""

    class Trainer(library.Trainer):
        def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
            state = load_file(os.path.join(resume_from_checkpoint, "model.safetensors"))
            found = self.model.load_state_dict(state, strict=False)
            self._issue_warnings_after_load(found)
            seen.append((found.missing_keys, found.unexpected_keys))

        def _save_checkpoint(self, model, trial):
            run_dir = self._get_output_dir(trial=trial)
            output_dir = os.path.join(run_dir, f"checkpoint-{self.state.global_step}")
            self.store_flos()
            self.save_model(output_dir, _internal_call=True)
            self._save_optimizer_and_scheduler(output_dir)
            self._save_scaler(output_dir)
            self._save_rng_state(output_dir)
            self.state.save_to_json(os.path.join(output_dir, "trainer_state.json"))
            self._rotate_checkpoints(use_mtime=False, output_dir=run_dir)
            seen.append(sorted(name for name in os.listdir(output_dir) if name.endswith((".pt", ".pth"))))

    return Trainer


@pytest.mark.parametrize("make", [adding, in_own_files, in_files_of_the_reference, leaving_out, copied])
def test_a_run_is_resumed_alike(make: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    found, data = [], rows_for("GPT2LMHeadModel", 12)
    for library, model in zip(LIBRARIES, pair_of("GPT2LMHeadModel"), strict=True):
        seen: list[Any] = []
        changes = {"save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / library.__name__)}
        changes |= {"gradient_accumulation_steps": 1, "warmup_steps": 3}
        trainer: Any = None
        for steps in (4, 6):
            options = {"train_dataset": data, "data_collator": collate}
            trainer = make(library, seen)(model, arguments(library, **changes, max_steps=steps), **options)
            trainer.train(resume_from_checkpoint=steps > 4)
        found.append((seen, trainer.state.log_history, model))
    (theirs, of_theirs, oracle), (ours, of_ours, model) = found
    assert ours == theirs
    assert_same_history(of_ours[:-1], of_theirs[:-1])
    assert_same_weights(model, oracle)
    told = [str(each.message) for each in recwarn if issubclass(each.category, gptrio.GptrioWarning)]
    missing = "optimizer.pt, scheduler.pt, rng_state.pth: what they would hold begins anew"
    assert [missing in text for text in told if "begins anew" in text] == [True] * (make is leaving_out)
    assert not [text for text in told if "the checkpoint lacks" in text]
    if make is not copied:
        manifest = json.loads((tmp_path / "gptrio" / "checkpoint-4" / "manifest.json").read_text())
        own = {adding: {"more.pt"}, in_own_files: {"own.pt"}, leaving_out: set()}
        assert {name for name in manifest["files"] if name.endswith((".pt", ".pth"))} == own.get(
            make, {"optimizer.pt", "scheduler.pt"}
        )


def test_files_of_a_copied_method_open_in_the_reference(tmp_path: Path) -> None:
    found, data = [], rows_for("GPT2LMHeadModel", 12)
    for library, model in zip(LIBRARIES, pair_of("GPT2LMHeadModel"), strict=True):
        changes = {"save_strategy": "steps", "save_steps": 4, "output_dir": str(tmp_path / library.__name__)}
        options = {"train_dataset": data, "data_collator": collate}
        copied(library, [])(model, arguments(library, **changes, max_steps=4), **options).train()
        again = transformers.Trainer(pair_of("GPT2LMHeadModel")[0], arguments(transformers, max_steps=6), **options)
        again.train(resume_from_checkpoint=str(tmp_path / library.__name__ / "checkpoint-4"))
        found.append(again)
    assert_same_history(found[1].state.log_history[:-1], found[0].state.log_history[:-1])
    assert_same_weights(found[1].model, found[0].model)


def test_keys_that_a_load_did_not_match_are_named() -> None:
    trainer = gptrio.Trainer(pair_of("GPT2LMHeadModel")[1], arguments(gptrio))
    state = trainer.model.state_dict()
    del state["lm_head.weight"], state["transformer.ln_f.bias"]
    found = trainer.model.load_state_dict({**state, "more": torch.ones(1)}, strict=False)
    with pytest.warns(gptrio.GptrioWarning) as told:
        trainer._issue_warnings_after_load(found)
    assert [str(each.message) for each in told] == [
        "the checkpoint lacks transformer.ln_f.bias",
        "the checkpoint has, unlike the model, more",
    ]


def test_the_accelerator_can_be_made_and_its_rows_gathered_by_a_subclass() -> None:
    found, data = [], rows_for("GPT2LMHeadModel", 6)
    for library, model in zip(LIBRARIES, pair_of("GPT2LMHeadModel"), strict=True):
        seen: list[Any] = []

        class Trainer(library.Trainer):
            def create_accelerator_and_postprocess(self, seen=seen):
                seen.append((self.is_in_train, self.model is None, hasattr(self, "accelerator")))
                super().create_accelerator_and_postprocess()
                gather = self.gather_function
                self.gather_function = lambda values: (seen.append(tuple(values.shape)), gather(values))[1]

        options = {"eval_dataset": data, "data_collator": collate}
        trainer = Trainer(model, arguments(library, per_device_eval_batch_size=3), **options)
        metrics = trainer.evaluate()
        found.append((seen, metrics["eval_loss"], trainer.predict(data).predictions.shape))
    assert found[1][0] == found[0][0] and len(found[0][0]) == 3
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-5) and found[1][2] == found[0][2]


def test_an_accelerator_of_accelerate_is_refused() -> None:
    class Trainer(gptrio.Trainer):
        def create_accelerator_and_postprocess(self) -> None:
            self.accelerator = accelerate.Accelerator(cpu=True)

    with pytest.raises(gptrio.UnsupportedError, match=r"is accelerate\..*super\(\)\.create_accelerator"):
        Trainer(pair_of("GPT2LMHeadModel")[1], arguments(gptrio))
