"""`gptrio generate`: continue a text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gptrio.cli import options
from gptrio.cli.errors import print_error, report_errors
from gptrio.cli.options import DEFAULT_MODEL, Dtype, Quantization
from gptrio.cli.text import decode_arguments, print_json, read_text
from gptrio.errors import OptionError, counted, warn

if TYPE_CHECKING:
    import torch

    from gptrio.generation.stopping import FinishReason

DEFAULT_NEW_TOKENS = 128
NO_PROMPT = 'give one, as in: gptrio generate "def hello_world():", or --file, or a pipe'

Overflow = Literal["error", "truncate_left"]


def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue; - or nothing reads standard input.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", exists=True, dir_okay=False, help="Read the prompt from this file.")
    ] = None,
    model: options.Model = DEFAULT_MODEL,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", "-n", min=1, help=f"Most tokens to add; {DEFAULT_NEW_TOKENS} if they fit."),
    ] = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    greedy: options.Greedy = False,
    seed: options.Seed = None,
    num_return_sequences: options.Continuations = 1,
    stop: options.Stop = None,
    overflow: Annotated[
        Overflow, typer.Option(help="What to do with a prompt past the model's context: stop, or drop its beginning.")
    ] = "error",
    dtype: options.DtypeOption = None,
    quantize: options.QuantizeOption = None,
    device: options.Device = None,
    attn_implementation: options.Attention = None,
    as_json: options.Json = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show what runs and how fast, and tracebacks of errors.")
    ] = False,
) -> None:
    """Continue a text, and print it while it is generated.

    gptrio generate "def hello_world():"
    """
    from gptrio.kernels.cpu_decode.compilation import compile_mode

    with report_errors(context, verbose):
        text = read_text(prompt, file, NO_PROMPT)
        given = sampling_options(greedy, num_return_sequences, temperature=temperature, top_k=top_k, top_p=top_p)
        given |= {"stop_strings": decode_arguments(stop), "overflow": overflow}
        compile_mode()  # an unknown one is refused before a model is loaded
        loaded, tokenizer = load(model, device, dtype, attn_implementation, quantize)
        seed = fix_seed(seed)
        start = time.perf_counter()
        rows = run(loaded, tokenizer, text, max_new_tokens, given, stream=not as_json)
        seconds = time.perf_counter() - start
        if as_json:
            result = {"model": model, "prompt": text, "seed": seed, "completions": rows}
            print_json(result)
        if verbose:
            total = sum(row["tokens"] for row in rows)
            speed = f"{counted(total, 'token')} in {seconds:.2f} s, {total / seconds:.1f} tokens/s"
            print_error(f"{model}, {quantize or loaded.dtype} on {loaded.device}, seed {seed}: {speed}")


def sampling_options(greedy: bool, number: int, **given: float | None) -> dict[str, Any]:
    """Return the arguments of `model.generate` that select how tokens are chosen; others keep the model's values.

    Args:
        greedy: always take the likeliest token.
        number: how many continuations.
        **given: options of sampling by name, None for those not given.

    Raises:
        OptionError: --greedy and an option of sampling, or several texts, are given.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if greedy and chosen:
        names = ", ".join("--" + name.replace("_", "-") for name in chosen)
        raise OptionError(f"--greedy always takes the likeliest token, so {names} has no effect; drop one or the other")
    if greedy and number > 1:
        raise OptionError(f"--greedy writes one text only, so that --num-return-sequences {number} would be copies")
    return {"do_sample": not greedy, "num_return_sequences": number, **({"num_beams": 1} if greedy else {}), **chosen}


def load(
    name: str,
    device: str | None,
    dtype: Dtype | None,
    attention: str | None,
    quantization: Quantization | None = None,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """Load a model, ready to generate, and its tokenizer.

    Raises:
        CheckpointError: there is no such model, or its files are damaged.
        OptionError: a device that this machine does not have.
        MissingDependencyError: a quantization whose library is not installed.
    """
    from gptrio import AutoModelForCausalLM, AutoTokenizer
    from gptrio.hub import HubOptions, local_folder
    from gptrio.kernels.packing import can_pack

    target = choose_device(device)
    number_format = dtype or ("float32" if quantization and target.type == "cpu" else "auto")
    if local_folder(name) is not None:
        HubOptions().locate(name, "config.json")  # a folder of anything else is told so, before its tokenizer is missed
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    given = {"attn_implementation": attention, "load_in": quantization, "revision": revision}
    arguments = {name: value for name, value in given.items() if value is not None}
    model = AutoModelForCausalLM.from_pretrained(name, dtype=number_format, **arguments).to(target).eval()
    is_castable = getattr(model, "quantization_method", None) is None  # all but layers of bitsandbytes
    if dtype is None and target.type == "cpu" and is_castable and not can_pack(model.dtype):
        model = model.float()
    return model, tokenizer


def choose_device(name: str | None) -> torch.device:
    """Return the device of that name; by default the GPU if there is one, else the CPU."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"--device {name!r} is not a device; expected cpu, cuda, cuda:1 or the like") from error
    if device.type == "meta":
        raise OptionError("--device meta stores no values to compute with; expected cpu, cuda, cuda:1 or the like")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs here; try --device cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # what backends that are not there raise
        reason = str(error).partition("\n")[0].rstrip(".")
        raise OptionError(f"--device {name} cannot be used here ({reason}); try --device cpu") from error
    return device


def fix_seed(seed: int | None) -> int:
    """Seed torch's generators, with a fresh number if none is given, and return the seed.

    Raises:
        OptionError: the seed does not fit into 64 bits.
    """
    import torch

    from gptrio.utils.seed import check_seed

    seed = torch.seed() % 2**32 if seed is None else seed
    check_seed(seed)
    torch.manual_seed(seed)
    return seed


def run(
    model: Any, tokenizer: Any, prompt: str, new_tokens: int | None, options: dict[str, Any], stream: bool
) -> list[dict[str, Any]]:
    """Generate, and print the text meanwhile if `stream`; return text, tokens and finish_reason of each row."""
    from gptrio import BatchTextStreamer, TextStreamer
    from gptrio.generation.options.max_length import positions

    inputs = tokenizer(prompt, return_tensors="pt", verbose=False).to(model.device)
    length = inputs["input_ids"].shape[1]
    limit = new_tokens or default_limit(model.config.max_position_embeddings, length)
    if options["overflow"] == "error":
        limit = fitting_limit(positions(model), length, limit)
    decoding = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    beams = options.get("num_beams") or model.generation_config.num_beams or 1
    if stream and beams == 1:
        kind = TextStreamer if options["num_return_sequences"] == 1 else BatchTextStreamer
        options = {**options, "streamer": kind(tokenizer, **decoding)}
    ends: dict[int, tuple[FinishReason, int]] = {}  # row -> finish reason and number of new tokens
    output = model.generate(
        **inputs,
        max_new_tokens=limit,
        tokenizer=tokenizer,
        on_finish=lambda row, reason, number: ends.update({row: (reason, number)}),
        **options,
    )  # (N, T + new)
    start = output.shape[1] - max(number for _, number in ends.values())  # T, less than the prompt if that was cut
    rows = []
    for row, ids in enumerate(output[:, start:].tolist()):  # new tokens and padding
        reason, number = ends[row]
        text = tokenizer.decode(ids[:number], **decoding)
        rows.append({"text": text, "tokens": number, "finish_reason": reason.api_name})
    if stream and beams > 1:  # the tokens of a beam are final only at the end
        print(*(prompt + row["text"] for row in rows), sep="\n")
    return rows


def default_limit(context: int, length: int) -> int:
    """Return the default number of new tokens, which fits after a prompt of `length` tokens if that fits itself."""
    free = context - length
    return min(DEFAULT_NEW_TOKENS, free if free > 0 else max(context // 2, 1))


def fitting_limit(positions: int | None, length: int, limit: int) -> int:
    """Return how many of `limit` new tokens a model can write after `length` others; warns if these are fewer.

    Args:
        positions: that the model has, or None if it has no limit. The last token needs none.
        length: of the prompt; one that does not fit itself is left to `generate`.
        limit: most tokens that were asked for.
    """
    free = limit if positions is None else positions + 1 - length
    if not 0 < free < limit:
        return limit
    warn(
        f"max_new_tokens={limit} is more than fits: a prompt of {counted(length, 'token')} leaves room for {free} in "
        f"the model's {positions} positions, where the text will end; "
        "overflow='truncate_left' drops the first tokens of the prompt"
    )
    return free
