"""`gptrio info`: what a model is, without loading it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from gptrio.cli import options
from gptrio.cli.errors import report_errors
from gptrio.cli.options import DEFAULT_MODEL
from gptrio.cli.progress import progress
from gptrio.cli.text import print_json

if TYPE_CHECKING:
    from gptrio.hub import HubOptions

# field of a configuration, under the name that all families share -> words for it
_SHOWN = {
    "num_hidden_layers": "blocks",
    "hidden_size": "hidden size",
    "num_attention_heads": "attention heads",
    "max_position_embeddings": "positions",
    "vocab_size": "vocabulary",
}
_UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def info(
    context: typer.Context,
    model: options.ModelArgument = DEFAULT_MODEL,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Show configuration, parameters, memory, files and tokenizer of a model, without loading its weights.

    gptrio info ./my-model

    gptrio info EleutherAI/pythia-160m --json
    """
    with report_errors(context, verbose):
        with progress("Reading"):
            facts = collect(model)
        if as_json:
            print_json(facts, indent=2)
        else:
            show(facts)


def collect(model: str) -> dict[str, Any]:
    """What the files of a model say about it.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    from gptrio.config.auto import AutoConfig
    from gptrio.hub import HubOptions, local_folder

    if local_folder(model) is None:
        from huggingface_hub import utils

        library: Any = utils  # whose types lack the function
        library.disable_progress_bars()  # of each small file: there is one for all
    config = AutoConfig.from_pretrained(model)
    options = HubOptions(revision=getattr(config, "_commit_hash", None))
    weights = weight_facts(model, config.tie_word_embeddings, options)
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        weights["memory"] = {}
    return {
        "model": model,
        "family": config.model_type,
        "architectures": config.architectures or [],
        "config": {name: getattr(config, name) for name in _SHOWN},
        "quantization": quantization,
        **weights,
        "cache_bytes_per_token": {
            name: 2 * config.num_hidden_layers * config.hidden_size * size
            for name, size in (("float32", 4), ("bfloat16", 2))
        },
        "tokenizer": tokenizer_facts(model, options),
    }


def weight_facts(model: str, is_tied: bool, options: HubOptions) -> dict[str, Any]:
    """Parameters, types, memory and files of a model; with a warning, no parameters where they are unknown."""
    from gptrio.errors import CheckpointNotFoundError, HubUnreachableError, warn
    from gptrio.models.checkpoint_summary import CheckpointSummary, summarize

    try:
        weights = summarize(model, is_tied, options)
        if not weights.tensors:
            warn(f"a torch file tells its parameters only once it is here; fetch it with: gptrio download {model}")
    except (CheckpointNotFoundError, HubUnreachableError) as error:
        warn(f"the weights are left out: {error}")
        weights = CheckpointSummary([], [], is_tied)
    total = sum(weights.parameters.values())
    return {
        "parameters": {**weights.parameters, "total": total} if total else None,
        "stored_as": weights.dtypes,
        "memory": weights.memory() if total else {},
        "files": {str(path): size for path, size in weights.files},
        "downloaded": weights.is_local,
    }


def tokenizer_facts(model: str, options: HubOptions) -> dict[str, Any] | None:
    """Class, size and special tokens of a model's tokenizer; None if it has none, or (with a warning) a damaged one."""
    from gptrio import AutoTokenizer
    from gptrio.errors import CheckpointNotFoundError, HubUnreachableError, TokenizationError, warn

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **options.as_kwargs())
    except CheckpointNotFoundError:
        return None
    except (HubUnreachableError, TokenizationError) as error:
        warn(f"the tokenizer is left out: {error}")
        return None
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if token}
    template = getattr(tokenizer, "chat_template", None) is not None
    return {
        "class": type(tokenizer).__name__,
        "tokens": len(tokenizer),
        "special_tokens": special,
        "chat_template": template,
    }


def show(facts: dict[str, Any]) -> None:
    """Print the facts, a line each."""
    from gptrio.cli.tables import print_facts

    rows = [("model", facts["model"]), ("family", ", ".join([facts["family"], *facts["architectures"]]))]
    rows += [(_SHOWN[name], f"{value:,}") for name, value in facts["config"].items()]
    rows += parameter_rows(facts["parameters"] or {})
    if facts["stored_as"]:
        rows.append(("stored as", ", ".join(facts["stored_as"]) + (" (quantized)" if facts["quantization"] else "")))
    rows += [(f"memory {name}", in_bytes(size)) for name, size in facts["memory"].items()]
    caches = facts["cache_bytes_per_token"].items()
    rows.append(("KV cache, a token", ", ".join(f"{in_bytes(size)} {name}" for name, size in caches)))
    place = "" if facts["downloaded"] else ", on the hub"
    rows += [("file", f"{path} ({in_bytes(size)}{place})") for path, size in facts["files"].items()]
    rows += tokenizer_rows(facts["tokenizer"])
    print_facts(rows)


def parameter_rows(parameters: dict[str, int]) -> list[tuple[str, str]]:
    """Lines about the number of parameters, the total first."""
    total = parameters.get("total", 0)
    parts = [(f"  {name}", f"{value:,} ({value / total:.1%})") for name, value in parameters.items() if name != "total"]
    return [("parameters", f"{total:,}" if total else "unknown"), *parts]


def tokenizer_rows(facts: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Lines about a tokenizer."""
    if facts is None:
        return [("tokenizer", "none")]
    special = ", ".join(f"{name.removesuffix('_token')} {token}" for name, token in facts["special_tokens"].items())
    return [
        ("tokenizer", f"{facts['class']}, {facts['tokens']:,} tokens"),
        ("special tokens", special or "none"),
        ("chat template", "yes" if facts["chat_template"] else "none"),
    ]


def in_bytes(size: int) -> str:
    """A number of bytes in the unit that suits it."""
    unit, factor = next(((unit, factor) for unit, factor in _UNITS if size >= factor), _UNITS[-1])
    return f"{size / factor:,.1f} {unit}"
