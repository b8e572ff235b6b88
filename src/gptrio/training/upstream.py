"""Checkpoint folders of Transformers' Trainer: whether one is whole, its training state, and states in its files.

`optimizer.pt`, `scheduler.pt`, `scaler.pt` and `rng_state.pth` are pickles; the restricted loader reads them, and runs
no code. `training_args.bin` would need classes of Transformers, and is never read.
"""

from __future__ import annotations

import os
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from gptrio.checkpoint.random_state_files import read_random_states
from gptrio.checkpoint.reader import SafetensorsFile
from gptrio.checkpoint.torch_files import read_torch_content
from gptrio.errors import CheckpointFormatError, GptrioError, UnsupportedError, warn
from gptrio.hub import read_json
from gptrio.training import optimizer_states, random_states, ranks
from gptrio.training.sharding import is_sharded

_LAST_FILE = "trainer_state.json"  # of a save
_FILES = {"optimizer": "optimizer.pt", "scheduler": "scheduler.pt", "scaler": "scaler.pt"}
_PICKLES = (".pt", ".pth", ".bin")
_NEVER_READ = "training_args.bin"


def verify_upstream_checkpoint(folder: Path) -> None:
    """Check as well as a folder without hashes allows: its last file is there, and its archives are whole.

    Raises:
        CheckpointFormatError: it is broken; the message says what is wrong.
    """
    if not (folder / _LAST_FILE).is_file():
        raise CheckpointFormatError(f"{folder} is not whole: {_LAST_FILE}, which is written last, is missing")
    for path in sorted(folder.iterdir()):
        fault = _fault(path)
        if fault:
            raise CheckpointFormatError(f"{folder} is not whole: {path.name} {fault}")


def load_upstream_state(
    folder: Path, *, model: nn.Module, optimizer: Any, scheduler: Any, scaler: Any, with_random: bool = True
) -> None:
    """Restore what there is of optimizer, schedule, scaler and random generators; warns of what there is not.

    Args:
        folder: a checkpoint of Transformers' Trainer, or one that has only a model.
        model, optimizer, scheduler, scaler: new ones, as for `load_snapshot`.
        with_random: restore the random generators.

    Raises:
        UnsafeCheckpointError: a pickle needs more than tensors and plain values.
        CheckpointFormatError: a file is damaged.
        CheckpointError: a state is of another model, optimizer or schedule.
    """
    missing = []
    for name, target in zip(_FILES.values(), (optimizer, scheduler, scaler), strict=True):
        if target is None:
            continue
        if not (folder / name).is_file():
            missing.append(name)
            continue
        content = _read_state(folder / name)
        if target is optimizer:
            optimizer_states.load(folder, model, optimizer, content)
        else:
            _load(folder / name, target, content)
    name = _random_file()
    if with_random and (folder / name).is_file():
        _restore_random_states(folder / name)
    elif with_random:
        missing.append(name)
    if missing:
        warn(f"{folder} has no {', '.join(missing)}: what they would hold begins anew, as in a new run")


def save_states(folder: Path, model: nn.Module, is_writer: bool, **objects: Any) -> None:
    """Write states into a folder as Transformers' Trainer does.

    Args:
        folder: made if need be.
        model: that is trained.
        is_writer: whether this rank writes.
        objects: by name: "optimizer", "scheduler", "scaler"; each with its `state_dict`.

    Raises:
        UnsupportedError: the weights are divided, and so the optimizer's state is.
    """
    if "optimizer" in objects and is_sharded(model):
        raise UnsupportedError(
            f"{folder}: the optimizer's state is divided among the processes, which only a checkpoint of the Trainer "
            "holds; call super()._save_checkpoint(model, trial)"
        )
    if is_writer:
        os.makedirs(folder, exist_ok=True)
        for name, each in objects.items():
            torch.save(each.state_dict(), folder / _FILES[name])


def save_random_states(folder: Path) -> None:
    """Write the states of this rank's random generators into a folder as Transformers' Trainer does."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state() if ranks.world_size() == 1 else torch.cuda.get_rng_state_all()
    os.makedirs(folder, exist_ok=True)
    torch.save(states, folder / _random_file())


def _random_file() -> str:
    return "rng_state.pth" if ranks.world_size() == 1 else f"rng_state_{ranks.rank()}.pth"


def _read_state(path: Path) -> Mapping[str, Any]:
    content = read_torch_content(path)
    if not isinstance(content, Mapping):
        raise CheckpointFormatError(f"{path} holds a {type(content).__name__}; expected a dictionary")
    return cast(Mapping[str, Any], content)


def _load(path: Path, target: Any, content: Mapping[str, Any]) -> None:
    try:
        target.load_state_dict(dict(content))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointFormatError(f"{path} does not fit this run: {type(error).__name__}: {error}") from error


def _restore_random_states(path: Path) -> None:
    saved = read_random_states(path)
    states: dict[str, Any] = {"numpy": saved["numpy"]} if "numpy" in saved else {}
    try:
        if "python" in saved:
            version, numbers, gauss = saved["python"]
            states["python"] = {"version": version, "numbers": numbers, "gauss": gauss}
        if "cpu" in saved:
            states["torch"] = torch.from_numpy(saved["cpu"].copy())
        if "cuda" in saved:  # one state, or a list of all devices'
            of_devices = saved["cuda"] if isinstance(saved["cuda"], list) else [saved["cuda"]]
            states["cuda"] = [torch.from_numpy(state.copy()) for state in of_devices]
        random_states.restore(states)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointFormatError(f"{path} holds no states of random generators: {error}") from error


def _fault(path: Path) -> str | None:
    """What is wrong with a file, as far as can be told; None if nothing is."""
    try:
        if path.suffix == ".safetensors":
            SafetensorsFile(path)
        elif path.suffix == ".json":
            read_json(path)
        elif path.suffix in _PICKLES and path.name != _NEVER_READ:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            return f"is damaged at {damaged}" if damaged else None
    except (GptrioError, zipfile.BadZipFile, OSError) as error:
        return f"is not whole ({error})"
    return None
