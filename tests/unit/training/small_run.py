"""A training run for tests of crashes: a tiny model with dropout, AdamW, a schedule, and checkpoints by `RunFolder`.

It begins from the newest whole checkpoint if there is one, so that it can be killed at any time and started again.
"""

from __future__ import annotations

import random
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from gptrio import GPT2LMHeadModel
from gptrio.testing import tiny_config
from gptrio.training.checkpoint import rotate_checkpoints
from gptrio.training.run_folder import RunFolder
from gptrio.training.snapshot import Position, load_snapshot, save_snapshot

torch.optim.SGD([torch.zeros(1)])  # the first optimizer imports much; a server of processes shall have done so
FACTS = {"per_device_train_batch_size": 2, "seed": 3}


class SmallRun:
    """A GPT-2 with dropout that learns random tokens; its data depend on the number of the update alone."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        random.seed(3)
        config = tiny_config("gpt2", resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2)
        self.model = GPT2LMHeadModel(config).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))
        self.step = 0

    def update(self) -> None:
        """One update; dropout and a factor draw from the generators that a checkpoint holds."""
        generator = torch.Generator().manual_seed(self.step)
        ids = torch.randint(self.model.config.vocab_size, (2, 6), generator=generator)
        (self.model(input_ids=ids, labels=ids).loss * random.random()).backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1

    def write(self, folder: Path) -> None:
        """Write all files of a checkpoint."""
        self.model.save_pretrained(folder)
        save_snapshot(folder, **self._parts(), position=Position(0, self.step, 3), extra={"step": self.step})

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(GPT2LMHeadModel.from_pretrained(folder).state_dict())
        position, extra = load_snapshot(folder, **self._parts())
        assert position is not None
        assert position.index == extra["step"]
        self.step = position.index

    def weights(self) -> bytes:
        """The bytes of all parameters."""
        return b"".join(value.detach().numpy().tobytes() for value in self.model.parameters())

    def _parts(self) -> dict[str, object]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": None}


def save(folder: RunFolder, run: SmallRun) -> Path | None:
    """Save a run as the trainer does, and keep two checkpoints."""
    target = folder.save(run.step, run.write, FACTS)
    if target is not None:
        rotate_checkpoints(folder.path, 2, None, newest=target)
    return target


def train(path: Path, steps: int, save_every: int = 1) -> bytes:
    """Train from the newest whole checkpoint, or anew, to the end; the final weights."""
    run = SmallRun()
    with RunFolder(path) as folder:
        found = folder.latest()
        if found is not None:
            run.resume(found)
        while run.step < steps:
            run.update()
            if run.step % save_every == 0:
                save(folder, run)
    return run.weights()


def train_in_process(path: Path, steps: int, started: Connection) -> None:
    """Train in a process of its own, send "started" first, and leave the final weights in `weights.bin`."""
    torch.set_num_threads(1)
    started.send("started")
    weights = train(path, steps)
    (path / "weights.tmp").write_bytes(weights)
    (path / "weights.tmp").rename(path / "weights.bin")
