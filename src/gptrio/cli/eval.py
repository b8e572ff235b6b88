"""`gptrio eval`: tasks of the lm-evaluation-harness, over revisions of a model."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gptrio.cli import options
from gptrio.cli.errors import report_errors
from gptrio.cli.text import check_file, print_json
from gptrio.errors import OptionError
from gptrio.utils.text import decode_text


def eval(
    context: typer.Context,
    model: options.ModelArgument,
    tasks: Annotated[
        str,
        typer.Option(
            help="Tasks, with commas between: names, YAML files, or NAME_local=DATA for a file of your own.",
            show_default=False,
        ),
    ],
    include: Annotated[
        list[Path] | None, typer.Option(exists=True, file_okay=False, help="Folder with further tasks in YAML files.")
    ] = None,
    revision: Annotated[str, typer.Option(help="Branches, tags or commits, with commas between.")] = "main",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many documents of each task.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples before each document.")] = None,
    dtype: options.DtypeOption = None,
    quantize: options.QuantizeOption = None,
    device: options.Device = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Evaluate a model by tasks of the lm-evaluation-harness (pip install 'gptrio[eval]').

    gptrio eval gptrio/stdlib-gpt2 --tasks lambada_local=passages.jsonl,blimp_local=pairs.jsonl

    gptrio eval EleutherAI/pythia-160m --tasks lambada_openai --revision step1000,step143000 --limit 500
    """
    with report_errors(context, verbose):
        names, files, folders = read_tasks(tasks, include or [])
        quiet_harness(verbose)
        from gptrio.cli.generate import choose_device
        from gptrio.errors import import_optional
        from gptrio.scoring.local_tasks import MISSING, local_tasks

        chosen, found = str(choose_device(device)), {}
        are_local = not folders and set(names) == files.keys()
        with local_tasks(files, include_defaults=not are_local, include=folders) as manager:
            harness = import_optional("lm_eval", MISSING)
            from gptrio.scoring.harness import GptrioLM

            for one in revision.split(","):
                lm = GptrioLM(model, None, one, dtype or "auto", quantize, device=chosen)
                run = harness.simple_evaluate(
                    model=lm,
                    tasks=names,
                    task_manager=manager,
                    limit=limit,
                    num_fewshot=num_fewshot,
                    bootstrap_iters=0,
                    log_samples=False,
                )
                found[one] = {task: numbers(metrics) for task, metrics in run["results"].items()}
        if as_json:
            print_json({"model": model, "revisions": found})
        else:
            show(found)


def read_tasks(tasks: str, include: list[Path]) -> tuple[list[str], dict[str, str], list[str]]:
    """Names of tasks, files of local ones, and folders that the harness searches.

    Raises:
        OptionError: no task is named, or a YAML file does not name its task.
    """
    names, files, folders = [], {}, [str(folder) for folder in include]
    for one in filter(None, tasks.split(",")):
        name, _, file = one.partition("=")
        if file:
            files[name] = file
        elif name.endswith((".yaml", ".yml")):
            name = _task_of(Path(name))
            folders.append(str(Path(one).resolve().parent))
        names.append(name)
    if not names:
        raise OptionError("--tasks names no task; give names, YAML files or NAME_local=DATA")
    return names, files, folders


def _task_of(file: Path) -> str:
    """The name that a YAML file gives its task."""
    check_file(file, "give a name, a YAML file or NAME_local=DATA as a task")
    found = re.search(r"^task:\s*[\"']?([\w.-]+)", decode_text(file.read_bytes(), str(file)), re.MULTILINE)
    if found is None:
        raise OptionError(f"{file} has no line 'task: NAME'; expected a task of the lm-evaluation-harness")
    return found[1]


def quiet_harness(verbose: bool) -> None:
    """Keep progress bars to terminals, and the harness' log to --verbose."""
    if sys.stderr is None or not sys.stderr.isatty():
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # read when datasets is imported
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported; the harness has no switch for all of its bars
    if not verbose:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Metrics of a task that are numbers, without the filter's name and standard errors."""
    return {
        name.removesuffix(",none"): value
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and "," in name and "_stderr" not in name
    }


def show(found: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print a line for each task and metric, with a column for each revision."""
    from gptrio.cli.tables import print_table

    keys = list(dict.fromkeys((task, name) for tasks in found.values() for task in tasks for name in tasks[task]))
    rows = [("task", "metric", *found)]
    rows += [(task, name, *(f"{tasks[task][name]:.4f}" for tasks in found.values())) for task, name in keys]
    print_table([[(text, "") for text in row] for row in rows], right=range(2, len(rows[0])))
