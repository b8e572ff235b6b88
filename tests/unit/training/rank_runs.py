"""Runs of `Trainer` for tests of several processes; imported by the server that the processes are forked from."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import accelerate  # noqa: F401 - takes long, and is needed by each process
import numpy as np
import torch

import gptrio
from gptrio import Trainer, TrainingArguments
from gptrio.models.base import language_loss
from gptrio.testing import tiny_config

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


def look(path: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """How a run computes: what its wrapper was told, whether scores of all positions are made, what a rank keeps."""
    options = {"ddp_find_unused_parameters": True, "ddp_bucket_cap_mb": 3, "ddp_broadcast_buffers": False}
    named_by_time = path / f"{time.time()}-{os.environ['RANK']}"
    trainer = trainer_of(named_by_time, max_steps=1, save_strategy="steps", save_steps=1, **options, **changes)
    calls = []
    of_states = language_loss.linear_cross_entropy
    language_loss.linear_cross_entropy = lambda *args, **kwargs: calls.append(1) or of_states(*args, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that no parameter was left out
        trainer.train()
    wrapper, without_scores = trainer.model_wrapped, len(calls)
    local = [value.to_local() if hasattr(value, "to_local") else value for value in trainer.model.parameters()]
    moments = [
        value.to_local() if hasattr(value, "to_local") else value
        for state in trainer.optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    ]
    plain = trainer_of(path / "default", **changes)
    evaluated = plain.evaluate()["eval_loss"]  # before anything is trained
    plain.train()
    return {
        "wrapper": [getattr(wrapper, name, None) for name in ("find_unused_parameters", "broadcast_buffers")],
        "bucket": getattr(wrapper, "bucket_bytes_cap", None),
        "default": getattr(plain.model_wrapped, "find_unused_parameters", None),
        "losses without scores": without_scores,
        "parameters": sum(value.numel() for value in local),
        "moments": sum(value.numel() for value in moments),
        "all": trainer.get_num_trainable_parameters(),
        "evaluated": evaluated,
        "checkpoint": Path(trainer.args.output_dir, "checkpoint-1", "manifest.json").is_file(),
    }


def by_batches(path: Path) -> list[Any]:
    """What `compute_metrics` gets of each batch, and of a list of batches."""
    seen: list[Any] = []

    def of_batch(pair: Any, compute_result: bool) -> dict[str, float]:
        seen.append((pair.label_ids.shape[0], compute_result))
        return {"rows": float(sum(rows for rows, _ in seen))}

    trainer = trainer_of(path, batch_eval_metrics=True)
    trainer.compute_metrics = of_batch
    rows = trainer.evaluate()["eval_rows"]
    lists = trainer_of(path, eval_do_concat_batches=False).predict(rows_for(LM, 5))
    own = torch.full((1,), 1.0 + trainer.args.process_index)
    trainer.accelerator.wait_for_everyone()
    exchanged = [trainer.accelerator.reduce(own, way).item() for way in ("sum", "mean")]
    exchanged.append(trainer.accelerator.gather(trainer.accelerator.pad_across_processes(own)).tolist())
    return [seen, rows, [part.shape[0] for part in lists.predictions], exchanged]


def on_two_machines(path: Path) -> tuple[list[str], list[str]]:
    """A run, and one that goes on from a checkpoint, where each process is the first of a machine with its own disk."""
    rank = os.environ["RANK"]
    os.environ["LOCAL_RANK"] = "0"
    disk = path / rank
    disk.mkdir()
    os.chdir(disk)
    changes = {"save_on_each_node": True, "save_strategy": "steps", "save_steps": 2, "dropout": 0.2}
    whole = trainer_of(Path("run"), **changes)
    whole.train()
    resumed = trainer_of(Path("run"), first_weights=2, **changes)
    resumed.train(resume_from_checkpoint=str(Path("run", "checkpoint-2")))
    assert as_bytes(whole) == as_bytes(resumed)
    resumed.save_model()
    return sorted(each.name for each in Path("run").iterdir()), sorted(os.listdir("run/checkpoint-2"))
