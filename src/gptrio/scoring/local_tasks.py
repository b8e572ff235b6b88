"""Tasks of the lm-evaluation-harness over files on this machine: LAMBADA, BLiMP and perplexity of documents."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from gptrio.errors import InputError, import_optional

LOCAL_TASKS = ("lambada_local", "blimp_local", "wikitext_local")
MISSING = "evaluation needs the lm-evaluation-harness; install it with: pip install 'gptrio[eval]'"
_FIELDS = {
    "lambada_local": ("text",),
    "blimp_local": ("UID", "sentence_good", "sentence_bad"),
    "wikitext_local": ("text",),
}


@contextmanager
def local_tasks(
    files: Mapping[str, str | os.PathLike[str]], include_defaults: bool = True, include: Sequence[str] = ()
) -> Iterator[Any]:
    """Give the harness tasks over local files; yields a `TaskManager` that knows them.

    Args:
        files: name of a task in `LOCAL_TASKS` to a file of JSON lines: "text" for `lambada_local` and `wikitext_local`
            (which also takes a plain text ending in `.txt`, as one document), "UID", "sentence_good" and "sentence_bad"
            for `blimp_local`.
        include_defaults: the manager also knows the harness' own tasks, of which it reads the list for some seconds.
        include: folders with further tasks of the user.

    Raises:
        InputError: an unknown task, or a file that is not there or has other fields.
        MissingDependencyError: the harness is not installed.

    Example:
        >>> with local_tasks({"lambada_local": "lambada_test.jsonl"}) as manager:
        ...     lm_eval.simple_evaluate(model=lm, tasks=["lambada_local"], task_manager=manager)
    """
    with tempfile.TemporaryDirectory(prefix="gptrio-tasks-") as folder:
        write_tasks(folder, files)  # so that a wrong file is named before a missing harness
        task_manager = import_optional("lm_eval.tasks", MISSING).TaskManager
        yield task_manager(include_path=[folder, *include], include_defaults=include_defaults)


def write_tasks(folder: str | os.PathLike[str], files: Mapping[str, str | os.PathLike[str]]) -> None:
    """Write the tasks over files into a folder, which is the harness' `include_path` then; see `local_tasks`."""
    package = resources.files("gptrio.scoring.tasks")
    for task, file in files.items():
        if task not in LOCAL_TASKS:
            raise InputError(f"task {task!r} is not a local one; use {', '.join(LOCAL_TASKS)}")
        path = Path(file).resolve()
        text = (package / f"{task}.yaml").read_text(encoding="utf-8").replace("DATA_FILE", json.dumps(str(path)))
        if task == "wikitext_local" and path.suffix == ".txt":
            text = text.replace(
                "dataset_path: json\ndataset_kwargs:", "dataset_path: text\ndataset_kwargs:\n  sample_by: document"
            )
            _check_is_file(task, path)
        else:
            documents = _read(task, path)
            if task == "blimp_local":
                text = text.replace(
                    "metadata:", _metrics(sorted({document["UID"] for document in documents})) + "metadata:"
                )
        Path(folder, f"{task}.yaml").write_text(text, encoding="utf-8")
    Path(folder, "functions.py").write_text((package / "functions.py").read_text(encoding="utf-8"), encoding="utf-8")


def _metrics(paradigms: list[str]) -> str:
    entry = "  - metric: {}\n    aggregation: mean\n    higher_is_better: true\n"
    return "".join(entry.format(json.dumps(f"acc_{paradigm}")) for paradigm in paradigms)


def _check_is_file(task: str, path: Path) -> None:
    if path.is_dir():
        raise InputError(f"the file of {task} is {path}, which is a folder; expected JSON lines")
    if not path.is_file():
        raise InputError(f"the file of {task} is {path}, which is not there; expected JSON lines")


def _read(task: str, path: Path) -> list[dict[str, Any]]:
    """The documents of a task's file, each with the fields of the task."""
    _check_is_file(task, path)
    documents = []
    try:
        text = path.read_text(encoding="utf-8")  # as the harness reads it
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
    # not splitlines(), which also splits at U+2028 and the like; they may stand in a JSON string
    for number, line in enumerate(io.StringIO(text), start=1):
        try:
            document = json.loads(line)
            missing = [name for name in _FIELDS[task] if not isinstance(document[name], str)]
        except (ValueError, KeyError, TypeError):
            missing = list(_FIELDS[task])
        if missing:
            raise InputError(f"line {number} of {path} lacks {', '.join(missing)}; {task} needs JSON lines with it")
        documents.append(document)
    return documents
