"""`gptrio verify`: whether all ways of computing a model's logits agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gptrio.cli import options
from gptrio.cli.errors import print_error, report_errors
from gptrio.cli.generate import choose_device
from gptrio.cli.options import DEFAULT_MODEL
from gptrio.cli.progress import progress
from gptrio.cli.text import discard_output, print_json

if TYPE_CHECKING:
    from gptrio.verification.verify import Comparison, Report

Weights = Literal["float32", "bfloat16", "int8", "int4"]


def verify(
    context: typer.Context,
    model: options.ModelArgument = DEFAULT_MODEL,
    weights: Annotated[Weights | None, typer.Option(help="Try this kind of weights only.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Compare every way of computing a model's logits with a plain forward in float64.

    A table shows the largest differences, relative to the largest logit, and what is allowed. The exit code is 1 if one
    is out of bounds, or the files lack weights or hold some that are not finite numbers.

    gptrio verify ./my-model

    gptrio verify ./my-model --weights float32 && echo "safe to publish"
    """
    with report_errors(context, verbose):
        target = choose_device(device)
        from gptrio.verification.verify import verify as compare

        with progress("Comparing") as on_progress:
            report = compare(model, str(target), weights, on_progress)
        try:
            print_report(model, report, as_json)
        except BrokenPipeError:  # the exit code tells what was found, whether or not the table is read to its end
            discard_output()
        raise typer.Exit(0 if report.passed else 1)


def print_report(model: str, report: Report, as_json: bool) -> None:
    """Print what was found, and on standard error the warnings and problems."""
    for sentence in [*(f"warning: {text}" for text in report.warnings), *report.problems]:
        print_error(sentence)
    if as_json:
        print_json(as_dict(model, report))
    else:
        show(report)


def show(report: Report) -> None:
    """Print the table, and what it comes to."""
    from gptrio.cli.tables import print_table

    styles = {"ok": "green", "OUT OF BOUNDS": "bold red"}
    rows = [[(name, "bold") for name in ("weights", "path", "difference", "bound", "result")]]
    for one in report.comparisons:
        found = "-" if one.difference is None else f"{one.difference:.1e}"
        result = verdict(one)
        texts = (one.weights, one.path, found, f"{one.bound:.0e}")
        rows.append([*((text, "") for text in texts), (result, styles.get(result, "dim"))])
    if report.comparisons:
        print_table(rows, right=(2, 3))
    computed = [one for one in report.comparisons if one.difference is not None]
    failed = sum(not one.passed for one in computed)
    print(
        f"{len(computed)} compared, {len(report.comparisons) - len(computed)} not possible here, {failed} out of bounds"
    )


def verdict(one: Comparison) -> str:
    """What came of a comparison, in a word or a reason."""
    return f"not here: {one.skipped}" if one.skipped else "ok" if one.passed else "OUT OF BOUNDS"


def as_dict(model: str, report: Report) -> dict[str, Any]:
    """The report for JSON; a difference that is infinite is null and has not passed."""
    rows: list[dict[str, Any]] = []
    for one in report.comparisons:
        finite = one.difference if one.difference is not None and one.difference < float("inf") else None
        rows.append({**one._asdict(), "difference": finite, "passed": one.passed})
    found: dict[str, Any] = {"model": model, "passed": report.passed, "comparisons": rows}
    loss = report.loss if report.loss == report.loss else None  # NaN is not JSON
    return found | {"loss": loss, "problems": report.problems, "warnings": report.warnings}
