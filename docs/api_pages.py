"""Makes the pages of the API reference: one for each room of the package, with every public name of it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import gptrio

TITLES = {
    "cache": "Caches",
    "config": "Configurations",
    "errors": "Errors and warnings",
    "generation": "Generation",
    "interop": "Bridge to Transformers",
    "models": "Models",
    "nn": "Attention back ends",
    "outputs": "Outputs",
    "pipelines": "Pipelines",
    "quantization": "Quantization",
    "scoring": "Scoring",
    "tokenization": "Tokenizers",
    "training": "Training",
    "utils": "Utilities",
}


def names_by_room() -> dict[str, list[str]]:
    """Room of the package -> its public names, as `module.name`."""
    rooms = defaultdict(list)
    for name, module in sorted(gptrio._EXPORTS.items()):
        rooms[module.split(".")[1]].append(f"{module}.{name}")
    return dict(sorted(rooms.items()))


def page(room: str, names: list[str]) -> str:
    """Markdown of a room's page."""
    return "\n\n".join([f"# {TITLES.get(room, room.capitalize())}", *(f"::: {name}" for name in names)]) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages before the site is built."""
    from mkdocs.structure.files import File

    rooms = names_by_room()
    index = (
        "# API reference\n\nEvery name here is imported from `gptrio` itself: `from gptrio import GPT2LMHeadModel`.\n\n"
    )
    rows = [
        f"- [{TITLES.get(room, room.capitalize())}]({room}.md): "
        + ", ".join(f"[`{name.rpartition('.')[2]}`]({room}.md#{name})" for name in names)
        for room, names in rooms.items()
    ]
    pages = {"index": index + "\n".join(rows) + "\n"} | {room: page(room, names) for room, names in rooms.items()}
    for name, text in pages.items():
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files
