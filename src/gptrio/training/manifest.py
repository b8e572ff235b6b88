"""`manifest.json`, the last file of a save, tells what a checkpoint folder holds, and so whether it is whole."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import safetensors
import torch

from gptrio import __version__
from gptrio.errors import CheckpointFormatError, CheckpointNotFoundError, GptrioError, warn
from gptrio.hub import files_of, flush_to_disk, read_json, sha256_of, write_text
from gptrio.training.upstream import verify_upstream_checkpoint
from gptrio.utils.file_names import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

MANIFEST = "manifest.json"
_FORMAT, _VERSION = "gptrio.checkpoint", 1
_WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
_WAY_OUT = " (if you have changed it yourself, gptrio.training.manifest.accept_changes(folder) takes it as it is)"
_OWN_FILES = ("training_state.json", "training_state.safetensors")  # that no other program writes


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a folder: size and SHA-256 of each file, the facts, and what computed them.

    Args:
        folder: complete but for the manifest.
        facts: "step" and "world_size", and arguments that a resumed run is compared with; JSON values.
    """
    _write(
        folder,
        {
            "format": _FORMAT,
            "version": _VERSION,
            "step": facts["step"],
            "world_size": facts["world_size"],
            "arguments": {name: value for name, value in facts.items() if name not in ("step", "world_size")},
            "machine": _machine(),
            "files": {name: _entry(folder / name) for name in files_of(folder) if name != MANIFEST},
        },
    )


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    write_text(folder / MANIFEST, json.dumps({**content, "sha256": _digest(content)}, indent=2) + "\n")


def accept_changes(folder: str | os.PathLike[str], names: Collection[str] | None = None) -> None:
    """Take the files of a checkpoint as they are now, after they were changed, added or removed on purpose.

    Args:
        folder: of a checkpoint with a manifest.
        names: of files that may have changed; all by default.
    """
    folder = Path(folder)
    content = _read_manifest(folder)
    present = [name for name in files_of(folder) if name != MANIFEST]
    known = {} if names is None else {name: each for name, each in content["files"].items() if name not in names}
    files = {name: known[name] if name in known else _entry(folder / name) for name in present}
    for name in set(files) - set(known):
        flush_to_disk(folder / name)
    _write(folder, {**content, "files": files})


def stamps_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of every file."""
    states = {name: (folder / name).stat() for name in files_of(folder)}
    return {name: (state.st_size, state.st_mtime_ns) for name, state in states.items()}


def verify_checkpoint(folder: Path) -> None:
    """Check that a checkpoint folder is whole: every file has the size and the SHA-256 that its manifest says.

    A folder of Transformers has no manifest: there its last file must be there, and its archives must be readable.

    Raises:
        CheckpointNotFoundError: there is no such folder.
        CheckpointFormatError: it is broken; the message says what is wrong.
    """
    if not folder.is_dir():
        raise CheckpointNotFoundError(f"no checkpoint folder {folder}")
    if not (folder / MANIFEST).is_file():
        own = [name for name in _OWN_FILES if (folder / name).exists()]
        if own:
            raise CheckpointFormatError(f"{folder} is not whole: {MANIFEST} is missing beside {own[0]}")
        verify_upstream_checkpoint(folder)
        return
    files = _read_manifest(folder)["files"]
    others = [name for name in _WEIGHTS if name not in files and (folder / name).is_file()]
    for name, entry in files.items():
        if others and name in _WEIGHTS and not (folder / name).exists():
            continue  # the weights were written in another form since
        fault = _fault(folder, name, entry)
        if fault:
            raise CheckpointFormatError(f"{folder} is not whole: {name} {fault}")


def warn_of_changes(folder: Path, facts: Mapping[str, Any]) -> None:
    """Warn of arguments, threads and libraries that differ from those which a checkpoint was written with.

    Args:
        folder: of a checkpoint that verifies; one without a manifest is passed over.
        facts: what `write_checkpoint` would be given now.
    """
    if not (folder / MANIFEST).is_file():
        return
    manifest = _read_manifest(folder)
    before = {"world_size": manifest["world_size"], **manifest["arguments"]}
    changed = [
        f"{name} {before[name]!r} -> {facts[name]!r}"
        for name in before
        if name in facts and json.loads(json.dumps(facts[name])) != before[name]
    ]
    if changed:
        warn(
            f"resuming from {folder} with other arguments: {', '.join(changed)}; the run goes on, but not as it would "
            "have with the old ones"
        )
    then, now = manifest["machine"], _machine()
    other = [f"{name} {then[name]} -> {now.get(name)}" for name in then if then[name] != now.get(name)]
    if other:
        warn(
            f"resuming from {folder} with {', '.join(other)}: results may differ from the old run's in their last bits"
        )


def _machine() -> dict[str, Any]:
    """What results depend on in their last bits."""
    return {
        "gptrio": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = read_json(folder / MANIFEST)
    except GptrioError as error:
        raise CheckpointFormatError(f"{folder} is not whole: {error}") from error
    digest = manifest.pop("sha256", None)
    if digest != _digest(manifest):
        raise CheckpointFormatError(f"{folder} is not whole: {MANIFEST} was changed or damaged")
    if (manifest.get("format"), manifest.get("version")) != (_FORMAT, _VERSION):
        raise CheckpointFormatError(
            f"{folder / MANIFEST} has format {manifest.get('format')!r}, version {manifest.get('version')!r}; this "
            f"version of gptrio reads {_FORMAT!r}, version {_VERSION}"
        )
    return manifest


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _fault(folder: Path, name: str, entry: Mapping[str, Any]) -> str | None:
    """What is wrong with a file; None if nothing is."""
    path = folder / name
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return "leads out of the folder"
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"has {size:,} bytes; {entry['bytes']:,} were written{_WAY_OUT}"
        return None if sha256_of(path) == entry["sha256"] else f"has other bytes than were written{_WAY_OUT}"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
