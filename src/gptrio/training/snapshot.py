"""What a run's state is beside the model: gathered into two files without pickle, and restored bit for bit.

`training_state.safetensors` has the optimizer's tensors by parameter name and the states of the random generators;
`training_state.json` the rest: the optimizer's settings, schedule, scaler, the place in the data, and what the trainer
adds. Each further rank of torch.distributed writes `random_state_RANK.safetensors` for its own generators.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from gptrio.errors import CheckpointFormatError, GptrioError, warn
from gptrio.hub import read_json, write_text
from gptrio.training import optimizer_states, random_states, ranks, upstream
from gptrio.training.state_tree import decode, encode

STATE_JSON, STATE_TENSORS = "training_state.json", "training_state.safetensors"


@dataclass
class Position:
    """Place in the order of the data: `index` batches of `epoch` are done, in the order that `seed` gives.

    Attributes:
        epoch: from 0.
        index: micro-batches of the epoch that are done, by rank 0.
        seed: of the order.
    """

    epoch: int
    index: int
    seed: int


def save_snapshot(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: Any,
    scheduler: Any,
    scaler: Any,
    position: Position,
    extra: Mapping[str, Any],
) -> None:
    """Write the state of a run into a folder; each rank calls this.

    Args:
        folder: of a checkpoint that is being written.
        model: not wrapped; gives the parameters their names.
        optimizer, scheduler, scaler: those of torch, or objects with their `state_dict`; None is left out.
        position: place in the data.
        extra: states of callbacks, sums of losses and the like: numbers, text, tensors, lists and dictionaries.

    Raises:
        CheckpointError: a state holds an object that is none of these; the message names it.
    """
    if not ranks.is_first():
        _write_tensors(folder / _random_file(ranks.rank()), "random", random_states.gather())
        return
    state = {
        "position": asdict(position),
        "optimizer": None if optimizer is None else optimizer_states.gather(model, optimizer),
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "random": random_states.gather(),
        "extra": dict(extra),
    }
    tensors: dict[str, torch.Tensor] = {}
    content = {name: encode(value, name, tensors) for name, value in state.items()}
    save_file(tensors, folder / STATE_TENSORS, {"format": "pt"})
    write_text(folder / STATE_JSON, json.dumps(content, indent=1) + "\n")


def load_snapshot(
    folder: Path, *, model: nn.Module, optimizer: Any, scheduler: Any, scaler: Any
) -> tuple[Position | None, dict[str, Any]]:
    """Restore the state of a run, and the random generators, from a checkpoint of gptrio or of Transformers' Trainer.

    Args:
        folder: a checkpoint that verifies.
        model, optimizer, scheduler, scaler: new ones, as for `save_snapshot`; None is left out.

    Returns:
        The place in the data, and `extra`. The place is None, and `extra` empty, for a checkpoint that has only a
        model, or is Transformers': there the number of updates in `trainer_state.json` tells it.

    Raises:
        CheckpointFormatError: the files are damaged.
        CheckpointError: they are of another model, optimizer or schedule.
    """
    if not (folder / STATE_JSON).is_file():
        upstream.load_upstream_state(folder, model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler)
        return None, {}
    content = read_json(folder / STATE_JSON)
    tensors = _read_tensors(folder / STATE_TENSORS)
    state = {name: decode(value, tensors) for name, value in content.items()}
    try:
        position = Position(**state["position"])
        if optimizer is not None:
            optimizer_states.restore(folder, model, optimizer, state["optimizer"])
        _restore(folder, "scheduler", scheduler, state["scheduler"])
        _restore(folder, "scaler", scaler, state["scaler"])
        random_states.restore(_random_state(folder, state["random"]))
    except GptrioError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointFormatError(f"the training state in {folder} does not fit this run: {error}") from error
    return position, state["extra"]


def _restore(folder: Path, what: str, target: Any, saved: Any) -> None:
    if target is None:
        return
    if saved is None:
        warn(f"{folder} has no state of a {what}; it begins anew")
        return
    target.load_state_dict(saved)


def _random_file(rank: int) -> str:
    return f"random_state_{rank}.safetensors"


def _random_state(folder: Path, of_first: Any) -> Any:
    """The state of this rank's random generators."""
    if ranks.is_first():
        return of_first
    path = folder / _random_file(ranks.rank())
    if not path.is_file():
        warn(f"{path} is missing: the checkpoint is of fewer processes, and this one begins with new random numbers")
        return {}
    metadata = _metadata(path)
    return decode(json.loads(metadata["random"]), _read_tensors(path))


def _write_tensors(path: Path, name: str, state: Mapping[str, Any]) -> None:
    tensors: dict[str, torch.Tensor] = {}
    content = encode(state, name, tensors)
    save_file(tensors, path, {"format": "pt", name: json.dumps(content)})


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointFormatError(f"{path} is missing beside {STATE_JSON}") from error
    except SafetensorError as error:
        raise CheckpointFormatError(f"{path} is not a whole safetensors file: {error}") from error
