"""`gptrio chat`: a conversation with a model in the terminal, or over a pipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptrio.cli import options
from gptrio.cli.assignments import parse_assignments
from gptrio.cli.errors import report_errors
from gptrio.cli.generate import fix_seed, load
from gptrio.cli.options import DEFAULT_MODEL
from gptrio.cli.text import decode_argument, has_terminal

if TYPE_CHECKING:
    from gptrio.generation.options.config import GenerationConfig


def chat(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Folder or hub name of a model.", show_default=DEFAULT_MODEL),
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=VALUE", help="Options of generation.", show_default=False)
    ] = None,
    user: Annotated[str, typer.Option(help="Your name, before the prompt.", show_default=False)] = "",
    system_prompt: Annotated[
        str | None, typer.Option(help="First message, which says how to answer.", show_default=False)
    ] = None,
    load_from: Annotated[
        Path | None, typer.Option("--load", help="Go on with a chat that !save wrote.", show_default=False)
    ] = None,
    save_folder: Annotated[Path, typer.Option(help="Where !save writes chats without a name.")] = Path("chat_history"),
    examples_path: Annotated[
        Path | None, typer.Option(help="YAML or JSON file with texts for !example.", show_default="some of its own")
    ] = None,
    generation_config: Annotated[
        str | None,
        typer.Option(help="JSON file, folder or hub name with options of generation.", show_default="the model's"),
    ] = None,
    model_revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the model.", show_default="the main branch")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Make the answers repeatable.", show_default=False)] = None,
    dtype: options.DtypeOption = None,
    quantize: options.QuantizeOption = None,
    device: options.Device = None,
    attn_implementation: options.Attention = None,
    as_json: Annotated[bool, typer.Option("--json", help="Read lines, and print an object for each answer.")] = False,
    verbose: options.Verbose = False,
) -> None:
    """Chat with a model. Ctrl-C ends an answer, !help lists commands, !exit or Ctrl-D ends the chat.

    gptrio chat

    gptrio chat ./my-model max_new_tokens=100 do_sample=False

    gptrio chat --load chat.json temperature=0.7

    echo "What is a list?" | gptrio chat
    """
    from gptrio.cli.chat_terminal import EXAMPLES, ChatTerminal, read_examples
    from gptrio.kernels.cpu_decode.compilation import compile_mode

    with report_errors(context, verbose):
        name, assignments = split_words([*([] if model is None else [model]), *(arguments or ())])
        options.no_file(name)
        given = parse_assignments(assignments)
        examples = EXAMPLES if examples_path is None else read_examples(examples_path)
        compile_mode()  # an unknown one is refused before a model is loaded
        loaded, tokenizer = load(name, device, dtype, attn_implementation, quantize, model_revision)
        fix_seed(seed)
        from gptrio.generation.chat import ChatSession

        config = None if generation_config is None else read_generation_config(generation_config)
        session = ChatSession(loaded, tokenizer, generation_config=config)
        is_interactive = has_terminal() and not as_json
        terminal = ChatTerminal(session, name, save_folder, is_interactive, as_json, user, examples)
        if load_from is not None:
            terminal.load(str(load_from))
        if system_prompt is not None:
            session.system_prompt = decode_argument(system_prompt)
        session.set_options(given)
        terminal.run()


def read_generation_config(name: str) -> GenerationConfig:
    """The options of generation in a JSON file, or in the `generation_config.json` of a folder or hub repository."""
    from gptrio import GenerationConfig

    file = Path(name)
    return GenerationConfig.from_pretrained(*((file.parent, file.name) if file.suffix == ".json" else (name,)))


def split_words(words: list[str]) -> tuple[str, list[str]]:
    """The model's name, which comes first if it is given, and the words with options."""
    if words and "=" not in words[0]:
        return words[0], words[1:]
    return DEFAULT_MODEL, words
