"""Runs of `Trainer` for tests of several processes; imported by the server that the processes are forked from."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import accelerate  # noqa: F401 - takes long, and is needed by each process
import numpy as np
import torch

import gptrio
from gptrio import GptrioWarning, Trainer, TrainerCallback, TrainingArguments
from gptrio.testing import tiny_config
from gptrio.training import checkpoint, saving

torch.optim.SGD([torch.zeros(1)])  # the first optimizer imports much; a server of processes shall have done so
FAMILIES = {"GPT2": "gpt2", "GPTNeoX": "gpt_neox", "GPTNeoF": "gpt_neo"}
DROPOUT = {
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop", "classifier_dropout"),
    "gpt_neox": ("hidden_dropout", "attention_dropout", "classifier_dropout"),
    "gpt_neo": ("resid_dropout", "embed_dropout", "attention_dropout", "classifier_dropout"),
}
LM = "GPT2LMHeadModel"
ROWS, VOCABULARY = 17, 60  # nine batches of two rows: the second of two ranks has one batch less
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "learning_rate": 1e-3,
    "adam_epsilon": 1e-6,  # some gradients are zero in exact arithmetic; with 1e-8 their rounding would move weights
    "weight_decay": 0.1,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "ddp_timeout": 600,
}


class Case(NamedTuple):
    """A model and arguments that differ from `SETTINGS`."""

    class_name: str
    changes: dict[str, Any]


def rows_for(class_name: str, rows: int = ROWS) -> list[dict[str, Any]]:
    """Rows of 3 to 12 tokens, of which very different numbers have labels that count."""
    generator = torch.Generator().manual_seed(5)

    def draw(high: int, size: int) -> list[int]:
        drawn: list[int] = torch.randint(high, (size,), generator=generator).tolist()
        return drawn

    data = []
    for i, length in enumerate(torch.randint(3, 13, (rows,), generator=generator).tolist()):
        row: dict[str, Any] = {"input_ids": draw(VOCABULARY - 1, length)}
        if class_name.endswith("SequenceClassification"):
            row["labels"] = draw(3, 1)[0]
        else:
            classes = 3 if class_name.endswith("TokenClassification") else VOCABULARY
            row["labels"] = [label if place > i % length else -100 for place, label in enumerate(draw(classes, length))]
            row["labels"][-1] = 1
        data.append(row)
    return data


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch, padded on the right."""
    width = max(len(row["input_ids"]) for row in rows)
    batch: dict[str, Any] = {
        "attention_mask": [[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in rows]
    }
    for name in rows[0]:
        padding = VOCABULARY - 1 if name == "input_ids" else -100
        values = [row[name] for row in rows]
        is_ragged = isinstance(values[0], list)
        batch[name] = [value + [padding] * (width - len(value)) for value in values] if is_ragged else values
    return {name: torch.tensor(values) for name, values in batch.items()}


def trainer_of(
    path: Path,
    class_name: str = LM,
    first_weights: int = 1,
    dropout: float = 0.0,
    cls: type[Trainer] = Trainer,
    **changes: Any,
) -> Trainer:
    """A trainer of a tiny model; names that are no arguments of training go to the trainer, or to the configuration."""
    fields = TrainingArguments.__dataclass_fields__
    arguments = {name: value for name, value in changes.items() if name in fields}
    options = {name: changes.pop(name) for name in ("callbacks", "train_dataset", "eval_dataset") if name in changes}
    config = {name: value for name, value in changes.items() if name not in fields}
    torch.manual_seed(first_weights)
    family = next(family for prefix, family in FAMILIES.items() if class_name.startswith(prefix))
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "pad_token_id": VOCABULARY - 1, "num_labels": 3}
    sizes |= dict.fromkeys(DROPOUT[family], dropout)
    model = getattr(gptrio, class_name)(tiny_config(family, **{**sizes, **config}))
    data = {"train_dataset": rows_for(class_name), "eval_dataset": rows_for(class_name, 5), **options}
    return cls(model, TrainingArguments(str(path), **{**SETTINGS, **arguments}), collate, **data)


def weights(trainer: Trainer) -> dict[str, np.ndarray]:
    """The values of all parameters."""
    named = {name: value.detach() for name, value in trainer.model.named_parameters()}
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).numpy().copy()
        for name, value in named.items()
    }


def outcome(trainer: Trainer) -> dict[str, Any]:
    """What one process and several have to have in common."""
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "losses": [entry["loss"] for entry in logs],
        "norms": [entry["grad_norm"] for entry in logs],
        "rates": [entry["learning_rate"] for entry in logs],
        "total": trainer._total_loss_scalar,
        "steps": trainer.state.global_step,
        "flos": trainer.state.total_flos,
        "tokens": trainer.state.num_input_tokens_seen,
        "weights": weights(trainer),
    }


def train_all(path: Path, cases: list[Case]) -> list[dict[str, Any]]:
    """Train, evaluate and predict in each case."""
    found = []
    for number, (class_name, changes) in enumerate(cases):
        trainer = trainer_of(path / str(number), class_name, **changes)
        trainer.train()
        result = outcome(trainer)
        result["evaluation"] = trainer.evaluate()["eval_loss"]
        predicted = trainer.predict(rows_for(class_name, 7))
        result["predictions"], result["labels"] = predicted.predictions, predicted.label_ids
        found.append(result)
    return found


def resume_exactly(path: Path, changes: dict[str, Any]) -> list[dict[str, Any]]:
    """The whole outcome, with dropout, of a run that nothing stopped and of one that goes on from its checkpoint."""
    changes = {"dropout": 0.2, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "epoch", **changes}
    undisturbed = trainer_of(path, **changes)
    undisturbed.train()
    resumed = trainer_of(path, first_weights=2, **changes)
    torch.manual_seed(77)
    resumed.train(resume_from_checkpoint=str(path / "checkpoint-2"))
    return [{**outcome(trainer), "weights": as_bytes(trainer)} for trainer in (undisturbed, resumed)]


def as_bytes(trainer: Trainer) -> bytes:
    """The bytes of all parameters."""
    return b"".join(value.tobytes() for value in weights(trainer).values())


def train(path: Path, resume: Path | None = None, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train anew, or from a checkpoint."""
    trainer = trainer_of(path, **(changes or {}))
    trainer.train(resume_from_checkpoint=resume)
    return outcome(trainer)


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
        "blocks": {"fsdp": "full_shard", "fsdp_config": {"transformer_layer_cls_to_wrap": "Blok"}},
        "optimizer": {"fsdp": "full_shard", "optim": "adafactor"},
    }
    for name, changes in wrong.items():
        found[name] = told(lambda changes=changes: trainer_of(path / "wrong", **changes).train())
    broken = trainer_of(path / "broken")
    if rank == 1:
        with torch.no_grad():
            broken.model.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")
    broken.accelerator.prepare_model = lambda model, **options: model  # else rank 0's weights go to all
    broken.accelerator.no_sync = lambda model: nullcontext()
    found["nan"] = told(broken.train)
    return found


class Stream(torch.utils.data.IterableDataset[Any]):
    """Rows that can be read in one order alone."""

    def __iter__(self) -> Iterator[Any]:
        return iter(rows_for(LM))


class OwnLoader(Trainer):
    """Makes its own loader, and has it divided."""

    def get_train_dataloader(self) -> Any:
        loader = torch.utils.data.DataLoader(self.train_dataset, batch_size=2, shuffle=True, collate_fn=collate)
        return self.accelerator.prepare(loader)


DATA: dict[str, dict[str, Any]] = {
    "stream": {"train_dataset": Stream(), "eval_dataset": Stream(), "max_steps": 6},
    "own loader": {"cls": OwnLoader},
    "groups of like length": {"group_by_length": True},
    "whole batches": {"dataloader_drop_last": True, "eval_strategy": "epoch"},
    "workers": {"dataloader_num_workers": 1, "max_steps": 4},
    "fewer rows than ranks": {
        "train_dataset": rows_for(LM, 2),
        "eval_dataset": rows_for(LM, 1),
        "eval_strategy": "epoch",
    },
}


def read(path: Path, **changes: Any) -> dict[str, Any]:
    """Runs over data of all kinds."""
    found = {}
    for name, options in DATA.items():
        torch.manual_seed(0)
        trainer = trainer_of(path / name, **options, **changes)
        torch.manual_seed(0)
        trainer.train()
        found[name] = {**outcome(trainer), "evaluation": trainer.evaluate()["eval_loss"]}
    return found


def adapt(path: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Train an adapter, whose best checkpoint is loaded at the end."""
    import peft

    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=True)
    adapted = peft.get_peft_model(trainer_of(path).model, config)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 2}
    saving = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    arguments = TrainingArguments(str(path), **{**SETTINGS, **best, **saving, **changes})
    trainer = Trainer(adapted, arguments, collate, rows_for(LM), rows_for(LM, 5))
    trainer.train()
    trainer.save_model()
    return {**outcome(trainer), "best": trainer.state.best_metric, "evaluation": trainer.evaluate()["eval_loss"]}


class Blocked(Trainer):
    """Stops for ever at a place within its second save, on every rank."""

    place = ""

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        if self.state.global_step == 2 and self.place:
            module, name = {"files": (saving, "save_snapshot"), "manifest": (checkpoint, "write_manifest")}.get(
                self.place, (checkpoint, "_publish")
            )
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
