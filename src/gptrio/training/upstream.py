"""Checkpoint folders of Transformers' Trainer: whether one is whole, and its training state.

`optimizer.pt`, `scheduler.pt`, `scaler.pt` and `rng_state.pth` are pickles; the restricted loader reads them, and runs
no code. `training_args.bin` would need classes of Transformers, and is never read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from gptrio.checkpoint.random_state_files import read_random_states
from gptrio.checkpoint.reader import SafetensorsFile
from gptrio.checkpoint.torch_files import read_torch_content
from gptrio.errors import CheckpointFormatError, GptrioError, warn
from gptrio.hub import read_json
from gptrio.training import optimizer_states, random_states, ranks

_LAST_FILE = "trainer_state.json"  # of a save
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
    for name, target in ("optimizer.pt", optimizer), ("scheduler.pt", scheduler), ("scaler.pt", scaler):
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
    name = "rng_state.pth" if ranks.world_size() == 1 else f"rng_state_{ranks.rank()}.pth"
    if with_random and (folder / name).is_file():
        _restore_random_states(folder / name)
    elif with_random:
        missing.append(name)
    if missing:
        warn(f"{folder} has no {', '.join(missing)}: what they would hold begins anew, as in a new run")


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
