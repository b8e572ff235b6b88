"""`gptrio train`: fine-tune a model on a file."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gptrio.cli import options
from gptrio.cli.errors import report_errors
from gptrio.cli.text import is_unicode, print_json
from gptrio.errors import FileOptionError, OptionError, counted

if TYPE_CHECKING:
    from gptrio.training.recipe import Run
    from gptrio.training.state import TrainerState

TaskName = Literal["lm", "classify", "tokens", "qa"]
CURVE = "loss.svg"


def train(
    context: typer.Context,
    model: options.ModelArgument,
    data: Annotated[Path, typer.Argument(help=".txt, .jsonl, .json, .csv, .tsv, .conll or SQuAD.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoints and the model.", show_default=False)],
    task: Annotated[TaskName, typer.Option("--task", "-t", help="Next tokens, texts, words, or answers.")] = "lm",
    evaluation: Annotated[
        Path | None, typer.Option("--eval", help="File to evaluate on; the best model is kept.", show_default=False)
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Columns, as in text=review,label=stars.", show_default="text, label, ...")
    ] = None,
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the data.")] = 3.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates, instead of --epochs.", show_default=False)] = None,
    lr: Annotated[
        float | None, typer.Option(min=0, help="Highest learning rate.", show_default="5e-5, with --lora 2e-4")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 8,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches of an update.")] = 1,
    length: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of a row.", show_default="the model's context")
    ] = None,
    lora: Annotated[
        int | None, typer.Option(min=1, help="Train an adapter of this rank instead.", show_default=False)
    ] = None,
    pack: Annotated[bool, typer.Option("--pack", help="Several texts in a row, which do not see each other.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of new weights, dropout and order.")] = 42,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Fine-tune a model on a file. Ctrl-C saves a checkpoint, from which --resume goes on as if nothing had happened.

    gptrio train gptrio/stdlib-gpt2 my_code.txt --out ./my-model --epochs 1

    gptrio train gpt2 spam.tsv --task classify --column label=1,text=2 --eval held_out.tsv --out ./spam

    gptrio train EleutherAI/pythia-160m stories.jsonl --lora 8 --pack --out ./adapter

    torchrun --nproc-per-node 4 -m gptrio train gpt2-xl stories.jsonl --out ./model
    """
    with report_errors(context, verbose):
        from gptrio.hub import write_text
        from gptrio.training import ranks
        from gptrio.training.curve import draw_svg
        from gptrio.training.recipe import Recipe, Run

        check_folder(out, resume, model)
        run = Run(
            Recipe(
                model=model, data=data, out=out, task=task, columns=parse_columns(column), evaluation=evaluation,
                epochs=epochs, steps=steps, learning_rate=lr, batch=batch, accumulate=accumulate, length=length,
                lora=lora, pack=pack, bf16=bf16, seed=seed,
            )
        )  # fmt: skip
        is_first = ranks.launched()[0] == 0
        if is_first and not as_json:
            print(*plan(run), sep="\n", flush=True)
        metrics, history = fit(run, resume, is_first)
        ranks.leave()
        if not is_first:
            return
        write_text(out / CURVE, draw_svg(history, f"{model} on {data.name}"))
        if as_json:
            print_json({"out": str(out), "metrics": metrics, "log_history": history})
            return
        print(*summary(run, metrics, history), sep="\n")


def parse_columns(column: str | None) -> dict[str, str]:
    """The column of each part of an example, from "text=review,label=stars".

    Raises:
        OptionError: a part has no "=".
    """
    pairs = [part.partition("=") for part in (column or "").split(",") if part]
    for name, sign, found in pairs:
        if not (name and sign and found):
            raise OptionError(
                f"column={column!r} is no list of parts and columns; write it as in text=review,label=stars"
            )
    return {name.strip(): found.strip() for name, _, found in pairs}


def check_folder(out: Path, resume: bool, model: str) -> None:
    """Refuse a folder that is the model's own, or holds another run, unless that one is to go on.

    Raises:
        FileOptionError: it is a file.
        OptionError: it is the model's or holds a run, or there is nothing to go on from.
    """
    if out.exists() and not out.is_dir():
        raise FileOptionError(f"{out} is a file; give a folder for --out")
    if out.is_dir() and Path(model).is_dir() and out.samefile(model):
        raise OptionError(f"{out} is the folder of the model, whose files would be lost; give another one for --out")
    has_checkpoints = any(out.glob("checkpoint-*"))
    if has_checkpoints and not resume:
        raise OptionError(f"{out} holds checkpoints of a run; go on with --resume, or give another folder")
    if resume and not has_checkpoints:
        raise OptionError(f"{out} holds no checkpoint to resume from; leave --resume out")


def plan(run: Run) -> list[str]:
    """What is going to happen, in lines."""
    from gptrio.training.parts import get_model_param_count

    recipe = run.recipe
    every, trained = get_model_param_count(run.model), get_model_param_count(run.model, trainable_only=True)
    memory = (16 * trained + 4 * (every - trained)) / 1e9  # weight, gradient and two moments; 4 bytes each
    share = "all" if trained == every else f"{trained:,} (LoRA of rank {recipe.lora})"
    lines = [
        ("model", f"{recipe.model}, {every:,} parameters, of which {share} are trained"),
        ("task", recipe.task + (f", {counted(len(run.task.labels), 'label')}" if run.task.labels else "")),
        ("data", f"{counted(run.train_examples, 'example')}, {counted(len(run.train_rows), 'row')} of at most "
                 f"{run.task.context} tokens, {counted(run.tokens, 'token')}"),
        ("updates", f"{run.updates:,} of {counted(run.rows, 'row')}, learning rate up to {run.learning_rate:g}"),
        ("precision", "bfloat16 over float32 weights" if recipe.bf16 else "float32"),
        ("memory", f"{memory:.2f} GB for weights, gradients and AdamW, and activations"),
        ("folder", str(recipe.out)),
    ]  # fmt: skip
    if run.processes > 1:
        lines.insert(-1, ("processes", f"{run.processes}, each with the whole model; rows are divided among them"))
    if run.eval_rows is not None:
        lines.insert(3, ("evaluation", counted(len(run.eval_rows), "row")))
    return [f"{name:<11}{text}" for name, text in lines]


def fit(run: Run, resume: bool, is_shown: bool = True) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Train, save the model, the best one if there is a file to evaluate on.

    Args:
        run: the model and its rows.
        resume: go on from the last checkpoint.
        is_shown: show how far the run is.

    Returns:
        Metrics and the log.
    """
    from gptrio.training.run_progress import RunProgress

    progress = RunProgress(run.updates, run.tokens_of_update)
    trainer = run.trainer([progress] if is_shown else [])
    with progress if is_shown else nullcontext():
        metrics = dict(trainer.train(resume_from_checkpoint=resume or None).metrics)
    trainer.save_model()
    trainer.save_state()
    return metrics | _evaluation(trainer.state), trainer.state.log_history


def _evaluation(state: TrainerState) -> dict[str, float]:
    """The metrics of the model that the run ended with: the best one, else that of the last evaluation."""
    evaluations = [entry for entry in state.log_history if "eval_loss" in entry]
    best = [entry for entry in evaluations if entry["step"] == state.best_global_step]
    found = (best or evaluations[-1:] or [{}])[0]
    return {name: value for name, value in found.items() if name.startswith("eval_")}


def summary(run: Run, metrics: dict[str, float], history: list[dict[str, Any]]) -> list[str]:
    """The curve, the figures, and what can be done with the folder."""
    from gptrio.training.curve import draw_text

    lines = [draw_text(history)] if is_unicode(sys.stdout) else []
    shown = {name: value for name, value in metrics.items() if name.endswith(("loss", "accuracy", "f1", "exact_match"))}
    lines.append(", ".join(f"{name} {value:.4f}" for name, value in shown.items()))
    out = run.recipe.out
    lines.append(f"{out}: the model, its checkpoints, and {CURVE}")
    if run.recipe.lora is not None:
        lines.append(f"try it: gptrio merge {run.recipe.model} {out} --out {out}-merged")
    elif run.recipe.task == "lm":
        lines.append(f"try it: gptrio generate --model {out} TEXT")
    else:
        lines.append(f"try it: gptrio run --task {run.task.pipeline} --model {out}")
    return [line for line in lines if line]
