"""`gptrio generate`: continue a text."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gptrio.cli.errors import complain, plain_errors
from gptrio.errors import OptionError

if TYPE_CHECKING:
    import torch

DEFAULT_MODEL = "gptrio/stdlib-gpt2"
DEFAULT_NEW_TOKENS = 128

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["int8", "int4", "nf4", "fp4"]


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue; - or nothing reads standard input.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", exists=True, dir_okay=False, help="Read the prompt from this file."),
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Folder or hub name of a model.")] = DEFAULT_MODEL,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", "-n", min=1, help=f"Most tokens to add; {DEFAULT_NEW_TOKENS} if they fit."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Above 1 more varied, below 1 more predictable.", show_default="the model's, or 1"),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=0, help="Choose among the k likeliest tokens; 0 for all.", show_default="the model's, or 50"),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Choose among the likeliest tokens of this total probability.", show_default="the model's, or 1"
        ),
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the likeliest token.")] = False,
    seed: Annotated[int | None, typer.Option(help="Make the choice repeatable.", show_default=False)] = None,
    num_return_sequences: Annotated[int, typer.Option(min=1, help="How many continuations.")] = 1,
    stop: Annotated[list[str] | None, typer.Option(help="End after this text; may be given several times.")] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="Number format; auto is the file's.",
            show_default="auto, but float32 on a processor without units for it",
        ),
    ] = None,
    quantize: Annotated[
        Quantization | None,
        typer.Option(
            help="Load weights in 8 or 4 bits; nf4 and fp4 need bitsandbytes.",
            show_default="as the checkpoint has them",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...", show_default="a GPU if there is one")
    ] = None,
    attn_implementation: Annotated[str | None, typer.Option(help="eager or sdpa.", show_default="sdpa")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object when all is done.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say what runs and how fast; tracebacks.")] = False,
) -> None:
    """Continue a text, printing it as it is written.

    gptrio generate "def hello_world():"
    """
    with plain_errors(verbose):
        text = read_prompt(prompt, file)
        options = sampling_options(greedy, temperature=temperature, top_k=top_k, top_p=top_p)
        loaded, tokenizer = load(model, device, dtype, attn_implementation, quantize)
        options |= {"num_return_sequences": num_return_sequences, "stop_strings": stop or None}
        seed = fix_seed(seed)
        start = time.perf_counter()
        rows = run(loaded, tokenizer, text, max_new_tokens, options, stream=not as_json)
        seconds = time.perf_counter() - start
        if as_json:
            print(json.dumps({"model": model, "prompt": text, "seed": seed, "completions": rows}, ensure_ascii=False))
        if verbose:
            total = sum(row["tokens"] for row in rows)
            speed = f"{total} tokens in {seconds:.2f} s, {total / seconds:.1f} tokens/s"
            complain(f"{model}, {quantize or loaded.dtype} on {loaded.device}, seed {seed}: {speed}")


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """Prompt from the argument, the file or standard input, exactly as it is there.

    Raises:
        OptionError: none or two of them, no text, or bytes that are not UTF-8.
    """
    if prompt is not None and file is not None:
        raise OptionError("a prompt and --file were both given; give one of them")
    if prompt is None and file is None and sys.stdin.isatty():
        raise OptionError('no prompt; give one, as in: gptrio generate "def hello_world():", or --file, or a pipe')
    name = f"file {file}" if file else "standard input"
    try:
        if file is not None:
            prompt = file.read_bytes().decode("utf-8")
        elif prompt in (None, "-"):
            prompt = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{name} is not UTF-8 text (byte {error.start}); convert it first") from error
    if not prompt:
        raise OptionError("the prompt is empty; give it at least one character")
    return prompt


def sampling_options(greedy: bool, **given: float | None) -> dict[str, Any]:
    """Arguments of `model.generate` that say how a token is chosen; what is not given stays the model's own.

    Raises:
        OptionError: an option of sampling beside --greedy.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if greedy and chosen:
        names = ", ".join("--" + name.replace("_", "-") for name in chosen)
        raise OptionError(f"--greedy leaves nothing to choose by {names}; drop one or the other")
    return {"do_sample": not greedy, **chosen}


def load(
    name: str, device: str | None, dtype: Dtype | None, attention: str | None, quantization: Quantization | None = None
) -> tuple[Any, Any]:
    """Load a model, ready to generate, and its tokenizer.

    Raises:
        OptionError: a device that this machine does not have.
        MissingDependencyError: a quantization whose library is not installed.
    """
    from gptrio import AutoModelForCausalLM, AutoTokenizer
    from gptrio.kernels.packing import can_pack

    place = choose_device(device)
    number_format = dtype or ("float32" if quantization and place.type == "cpu" else "auto")
    tokenizer = AutoTokenizer.from_pretrained(name)
    given = {"attn_implementation": attention, "load_in": quantization}
    options = {name: value for name, value in given.items() if value is not None}
    model = AutoModelForCausalLM.from_pretrained(name, dtype=number_format, **options).to(place).eval()
    if dtype is None and place.type == "cpu" and not can_pack(model.dtype):
        model = model.float()
    return model, tokenizer


def choose_device(name: str | None) -> torch.device:
    """Device of that name; without one, the GPU if there is one, else the CPU."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"--device {name!r} is no device; expected cpu, cuda, cuda:1 or the like") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs here; try --device cpu")
    return device


def fix_seed(seed: int | None) -> int:
    """Seed torch's generators, with a fresh number if none is given, and return the seed."""
    import torch

    seed = torch.seed() % 2**32 if seed is None else seed
    torch.manual_seed(seed)
    return seed


def run(
    model: Any, tokenizer: Any, prompt: str, new_tokens: int | None, options: dict[str, Any], stream: bool
) -> list[dict[str, Any]]:
    """Generate, printing the text as it comes if asked to, and describe each row: text, tokens, finish_reason."""
    from gptrio import BatchTextStreamer, TextStreamer

    inputs = tokenizer(prompt, return_tensors="pt", verbose=False).to(model.device)
    length = inputs["input_ids"].shape[1]  # (1, T)
    room = model.config.max_position_embeddings - length
    limit = new_tokens or (min(DEFAULT_NEW_TOKENS, room) if room > 0 else DEFAULT_NEW_TOKENS)
    decoding = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    if stream:
        kind = TextStreamer if options["num_return_sequences"] == 1 else BatchTextStreamer
        options = {**options, "streamer": kind(tokenizer, **decoding)}
    output = model.generate(**inputs, max_new_tokens=limit, tokenizer=tokenizer, **options)  # (N, T + new)
    ends = end_tokens(model)
    return [describe(row[length:].tolist(), ends, limit, tokenizer, decoding, options) for row in output]


def end_tokens(model: Any) -> set[int]:
    """Ids that end a text for this model."""
    ids = model.generation_config.eos_token_id
    return set(ids) if isinstance(ids, list) else {ids} - {None}


def describe(
    ids: list[int], ends: set[int], limit: int, tokenizer: Any, decoding: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Text, number of tokens and why it ended (`stop` or `length`) of one row of new tokens, padding left out."""
    number = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
    text = tokenizer.decode(ids[:number], **decoding)
    stopped = number < limit or ids[number - 1] in ends or text.endswith(tuple(options["stop_strings"] or ()))
    return {"text": text, "tokens": number, "finish_reason": "stop" if stopped else "length"}
