"""A `Trainer` for tests of resuming: a tiny model with dropout, rows in random order, checkpoints every few updates."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from gptrio import GPT2LMHeadModel, Trainer, TrainingArguments
from gptrio.testing import tiny_config

torch.optim.SGD([torch.zeros(1)])  # the first optimizer imports much; a server of processes shall have done so
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "num_train_epochs": 2,
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "warmup_steps": 2,
    "logging_steps": 2,
    "save_steps": 1,
    "save_total_limit": 2,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


def new_trainer(path: Path, rows: int = 10, first_weights: int = 1, **changes: Any) -> Trainer:
    """A trainer of a new model.

    Args:
        path: of checkpoints.
        rows: of the data.
        first_weights: their seed.
        changes: of the arguments.
    """
    data = torch.randint(257, (rows, 6), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(first_weights)
    config = tiny_config("gpt2", hidden_size=16, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2)
    model = GPT2LMHeadModel(config)
    arguments = TrainingArguments(str(path), **{**SETTINGS, **changes})
    return Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in data])


def weights(trainer: Trainer) -> bytes:
    """The bytes of all parameters."""
    return b"".join(value.detach().numpy().tobytes() for value in trainer.model.parameters())


def train(path: Path, **changes: Any) -> bytes:
    """Train from the newest whole checkpoint, or anew, to the end; the final weights."""
    trainer = new_trainer(path, **changes)
    trainer.train(resume_from_checkpoint=any(path.glob("checkpoint-*")) or None)
    return weights(trainer)


def train_in_process(path: Path, workers: int, started: Connection) -> None:
    """Train in a process of its own, send "started" first, and leave the final weights in `weights.bin`."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method(
        "fork", force=True
    )  # as in a program; else workers would start as this process did
    started.send("started")
    content = train(path, dataloader_num_workers=workers)
    (path / "weights.tmp").write_bytes(content)
    (path / "weights.tmp").rename(path / "weights.bin")
