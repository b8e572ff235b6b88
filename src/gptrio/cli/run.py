"""`gptrio run`: the pipeline of a task over a file or a pipe."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import typer

from gptrio.cli import options
from gptrio.cli.assignments import parse_assignments
from gptrio.cli.errors import report_errors
from gptrio.cli.generate import choose_device, sampling_options
from gptrio.cli.options import DEFAULT_MODEL
from gptrio.cli.text import decode_arguments, is_piped, is_unicode
from gptrio.errors import OptionError

TEXT_GENERATION = "text-generation"
_OF_THE_DEFAULT_MODEL = (None, TEXT_GENERATION, "feature-extraction")  # tasks that need no head of their own


def run(
    context: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME=VALUE", help="Arguments of the pipeline, such as top_k=3.", show_default=False),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task, such as text-generation.", show_default="what the model was made for")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Folder or hub name of a model.",
            show_default=DEFAULT_MODEL,
            callback=options.no_file,
        ),
    ] = None,
    config: Annotated[str | None, typer.Option(help="Another configuration.", show_default="the model's")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Another tokenizer.", show_default="the model's")] = None,
    input: Annotated[
        str | None, typer.Option("--input", "-i", help="File with inputs; - reads a pipe.", show_default="a pipe")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="File for the results.", show_default="printed")
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="Column to read; several as name,name or argument=name,argument=name.", show_default=False),
    ] = None,
    format: Annotated[
        Literal["infer", "json", "jsonl", "csv", "pipe"],
        typer.Option(help="Format of the input; pipe is a text in each line, jsonl an object."),
    ] = "infer",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output file that exists.")] = False,
    device: Annotated[str, typer.Option(help="Number of a GPU, -1 for the CPU, or cpu, cuda:1, ...")] = "-1",
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", "-n", min=1, help="Most tokens to add.", show_default="256")
    ] = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    greedy: options.Greedy = False,
    seed: options.Seed = None,
    num_return_sequences: options.Continuations = 1,
    stop: options.Stop = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
    verbose: options.Verbose = False,
) -> None:
    """Run the pipeline of a task over a pipe or a file.

    echo "def f(x):" | gptrio run --task text-generation --max-new-tokens 20

    gptrio run --task text-generation --input prompts.csv --column prompt --output texts.json --greedy

    gptrio run --task sentiment-analysis --model ./classifier --input reviews.json --column text top_k=3

    gptrio run --task question-answering --model ./reader --input qa.csv --column question=q,context=text
    """
    with report_errors(context, verbose):
        generation = sampling_options(greedy, num_return_sequences, temperature=temperature, top_k=top_k, top_p=top_p)
        generation |= {"max_new_tokens": max_new_tokens, "seed": seed, "stop_strings": decode_arguments(stop)}
        generation = chosen_options(generation)
        given = parse_assignments(arguments or ())
        if twice := sorted(given.keys() & generation.keys()):
            raise OptionError(f"{twice[0]} is given twice, as an option and as name=value; give it once")
        if model is None and task in _OF_THE_DEFAULT_MODEL:
            model = DEFAULT_MODEL
        path = input_path(input)
        kind = infer_format(path) if format == "infer" else format
        from gptrio import PipelineDataFormat, pipeline
        from gptrio.pipelines.formats import NO_COLUMNS, check_paths, results
        from gptrio.pipelines.formats import as_json as to_json

        check_paths(path, output, overwrite)
        number = int(device) if device.lstrip("-").isdigit() else None
        place = device if number is None else "cpu" if number < 0 else f"cuda:{number}"
        built = pipeline(task, model, config, tokenizer, device=choose_device(place))
        if generation and built.task != TEXT_GENERATION:
            raise OptionError(
                f"options of generation, such as --greedy and --seed, have no effect on task {built.task!r}; "
                "leave them out"
            )
        reader = PipelineDataFormat.from_str(kind, output, path, column or built.default_input_names, overwrite)
        reader.takes_only_column = column is None
        is_one_list = as_json and output is None
        if built.task == "feature-extraction" and reader.written == "csv" and not is_one_list:
            raise OptionError(NO_COLUMNS)  # before all is computed
        found = results(built, reader, **generation, **given)
        if is_one_list:
            print(to_json(found, not is_unicode(sys.stdout)), flush=True)
        else:
            reader.save(found)


def chosen_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; what the model and the pipeline choose otherwise is theirs."""
    defaults = {"do_sample": True, "num_return_sequences": 1}
    given = {name: value for name, value in options.items() if value is not None}
    chosen = {name: value for name, value in given.items() if defaults.get(name) != value}
    samples = {"temperature", "top_k", "top_p", "num_return_sequences"} & chosen.keys()
    return {**chosen, "do_sample": True} if samples else chosen


def input_path(name: str | None) -> str | None:
    """Path of the input file, None for standard input.

    Raises:
        OptionError: standard input is a terminal, and nothing was said about it.
    """
    if name is None and not is_piped():
        raise OptionError('no input; give --input FILE, or a pipe, as in: echo "def f(x):" | gptrio run')
    return None if name == "-" else name


def infer_format(path: str | None) -> str:
    """Format of a file by the end of its name; lines of text for standard input, and for .txt as its name says.

    Raises:
        OptionError: the name says nothing.
    """
    if path is None:
        return "pipe"
    end = path.rpartition(".")[2]
    if end == "txt":
        return "pipe"
    if end not in ("json", "jsonl", "csv", "pipe"):
        raise OptionError(
            f"the format of {path!r} cannot be inferred from its name; give --format json, jsonl, csv or pipe (lines "
            "of text)"
        )
    return end
