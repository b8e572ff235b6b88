"""Length and SHA-256 of each file of a saved state: damage is found before orbax reads, which may hang at it."""

from __future__ import annotations

import json
from pathlib import Path

from gptrio.hub import files_of, sha256_of, write_text

MANIFEST = "gptrio_manifest.json"
_ORBAX_METADATA = "_METADATA"


def write_manifest(folder: Path) -> None:
    """Describe the files of a state in a file beside them.

    Args:
        folder: complete, apart from this file; not yet under its final name, so that a crash leaves both or neither.
    """
    files = {name: [(folder / name).stat().st_size, sha256_of(folder / name)] for name in files_of(folder)}
    write_text(folder / MANIFEST, json.dumps(files))


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a state; None if they are as they were written.

    Without a manifest, as earlier versions saved, a state passes that has orbax's metadata and no empty file.

    Args:
        folder: of the state.
    """
    if not (folder / MANIFEST).exists():
        if not (folder / _ORBAX_METADATA).exists():
            return f"{_ORBAX_METADATA} is missing"
        return next((f"{name} is empty" for name in files_of(folder) if not (folder / name).stat().st_size), None)
    text = (folder / MANIFEST).read_bytes()
    try:
        files = {str(name): (int(size), str(sha256)) for name, (size, sha256) in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        return f"{MANIFEST} is not what was written"
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
        if sha256_of(path) != sha256:
            return f"the SHA-256 of {name} is not that of what was written"
    return None
