"""What a run's state is beside the model: gathered into two files without pickle, and restored bit for bit.

`training_state.safetensors` has the optimizer's tensors by parameter name and the states of the random generators;
`training_state.json` the rest: the optimizer's settings, schedule, scaler, the place in the data, and what the trainer
adds. Each further rank of torch.distributed writes `training_state_RANK.safetensors`: its random generators, and its
own values of what the trainer adds. Where parameters are divided, every file has its rank's rows of the optimizer's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from gptrio.errors import CheckpointFormatError, GptrioError, warn
from gptrio.hub import read_json, write_text
from gptrio.training import optimizer_states, random_states, ranks, upstream
from gptrio.training.sharding import SavedRows, is_sharded
from gptrio.training.state_tree import decode, encode

STATE_JSON, STATE_TENSORS = "training_state.json", "training_state.safetensors"


@dataclass
class Position:
    """Place in the order of the data: `index` batches of `epoch` are done, in the order that `seed` gives.

    Attributes:
        epoch: from 0.
        index: micro-batches of the epoch that are done, by each rank.
        seed: of the order.
        world_size: number of ranks.
    """

    epoch: int
    index: int
    seed: int
    world_size: int = 1

    def for_ranks(self, world_size: int, rows: int | None, batch_size: int) -> Position:
        """The same place for another number of ranks; warns if it begins some batches earlier.

        Args:
            world_size: number of ranks.
            rows: of the data; None if that is unknown.
            batch_size: rows of a batch of one rank.
        """
        batches = self.index * self.world_size
        index, rest = divmod(batches, world_size)
        if rest and rows is not None and batches * batch_size >= rows:  # the epoch has ended
            index, rest = index + 1, 0
        if rest and ranks.is_first():
            warn(
                f"the checkpoint is after {batches} batches, where {world_size} processes do not end a batch each; the "
                f"last {rest} are trained on again"
            )
        return Position(self.epoch, index, self.seed, world_size)


def save_snapshot(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: Any,
    scheduler: Any,
    scaler: Any,
    position: Position,
    extra: Mapping[str, Any],
    is_writer: bool | None = None,
    with_random: bool = True,
) -> None:
    """Write the state of a run into a folder; each rank calls this.

    Args:
        folder: of a checkpoint that is being written.
        model: not wrapped; gives the parameters their names.
        optimizer, scheduler, scaler: those of torch, or objects with their `state_dict`; None is left out.
        position: place in the data.
        extra: states of callbacks, sums of losses and the like: numbers, text, tensors, lists and dictionaries.
        is_writer: whether this rank writes what belongs to all: rank 0 by default, or one on each machine.
        with_random: write the states of the random generators.

    Raises:
        CheckpointError: a state holds an object that is none of these; the message names it.
    """
    generators = random_states.gather() if with_random else {}
    if not ranks.is_first():
        tensors: dict[str, torch.Tensor] = {}
        own = encode({"random": generators, "extra": dict(extra)}, "state", tensors)
        if optimizer is not None and is_sharded(model):  # the rows of this rank, under the names of rank 0's
            encode(optimizer_states.gather(model, optimizer), "optimizer", tensors)
        save_file(tensors, folder / rank_file(ranks.rank()), {"format": "pt", "state": json.dumps(own)})
    if not (ranks.is_first() if is_writer is None else is_writer):
        return
    state = {
        "position": asdict(position),
        "optimizer": None if optimizer is None else optimizer_states.gather(model, optimizer),
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "random": generators,
        "extra": dict(extra),
    }
    tensors = {}
    content = {name: encode(value, name, tensors) for name, value in state.items()}
    save_file(tensors, folder / STATE_TENSORS, {"format": "pt"})
    write_text(folder / STATE_JSON, json.dumps(content, indent=1) + "\n")


def load_snapshot(
    folder: Path, *, model: nn.Module, optimizer: Any, scheduler: Any, scaler: Any, with_random: bool = True
) -> tuple[Position | None, dict[str, Any]]:
    """Restore the state of a run, and the random generators, from a checkpoint of gptrio or of Transformers' Trainer.

    Args:
        folder: a checkpoint that verifies.
        model, optimizer, scheduler, scaler: new ones, as for `save_snapshot`; None is left out.
        with_random: restore the random generators.

    Returns:
        The place in the data, and `extra`. The place is None, and `extra` empty, for a checkpoint that has only a
        model, or is Transformers': there the number of updates in `trainer_state.json` tells it.

    Raises:
        CheckpointFormatError: the files are damaged.
        CheckpointError: they are of another model, optimizer or schedule.
    """
    objects = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    if not (folder / STATE_JSON).is_file():
        upstream.load_upstream_state(folder, model=model, **objects, with_random=with_random)
        return None, {}
    content = read_json(folder / STATE_JSON)
    tensors = _read_tensors(folder / STATE_TENSORS)
    try:
        position = Position(**content["position"])
        files = [folder / rank_file(rank) for rank in range(position.world_size)]
        state = {name: decode(value, tensors, partial(SavedRows, files=files)) for name, value in content.items()}
        unsaved = {name: target for name, target in objects.items() if target is not None and state[name] is None}
        if optimizer is not None and "optimizer" not in unsaved:
            optimizer_states.restore(folder, model, optimizer, state["optimizer"])
        for name in ("scheduler", "scaler"):
            if objects[name] is not None and name not in unsaved:
                objects[name].load_state_dict(state[name])
        own = state if ranks.is_first() else _state_of_rank(folder, position)
        if with_random:
            random_states.restore(own.get("random", {}))
        with_random = with_random and not state["random"]
        if unsaved or with_random:  # a subclass has left them out, or written files of its own
            given = {**dict.fromkeys(objects), **unsaved}
            upstream.load_upstream_state(folder, model=model, **given, with_random=with_random)
    except GptrioError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointFormatError(f"the training state in {folder} does not fit this run: {error}") from error
    return position, own.get("extra", state["extra"])


def rank_file(rank: int) -> str:
    """Name of the file with the tensors of a rank."""
    return f"training_state_{rank}.safetensors" if rank else STATE_TENSORS


def _state_of_rank(folder: Path, position: Position) -> Any:
    """The state of this rank's random generators, and what it added; nothing in a checkpoint of fewer ranks."""
    path = folder / rank_file(ranks.rank())
    if ranks.rank() >= position.world_size:
        return {}
    with safe_open(path, "pt") as file:
        state = json.loads(file.metadata()["state"])
    return decode(state, _read_tensors(path))


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointFormatError(f"{path} is missing beside {STATE_JSON}") from error
    except SafetensorError as error:
        raise CheckpointFormatError(f"{path} is not a whole safetensors file: {error}") from error
