"""`gptrio info`: what a model is, without loading it."""

from __future__ import annotations

from typing import Any

import typer

from gptrio.cli import options
from gptrio.cli.errors import report_errors
from gptrio.cli.options import DEFAULT_MODEL
from gptrio.cli.text import print_json

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
    from gptrio.models.checkpoint_summary import summarize

    config = AutoConfig.from_pretrained(model)
    weights = summarize(model, config.tie_word_embeddings)
    quantization = getattr(config, "quantization_config", None)
    return {
        "model": model,
        "family": config.model_type,
        "architectures": config.architectures or [],
        "config": {name: getattr(config, name) for name in _SHOWN},
        "parameters": {**weights.parameters, "total": sum(weights.parameters.values())},
        "stored_as": weights.dtypes,
        "quantization": quantization,
        "memory": weights.memory() if quantization is None else {},
        "cache_bytes_per_token": {
            name: 2 * config.num_hidden_layers * config.hidden_size * size
            for name, size in (("float32", 4), ("bfloat16", 2))
        },
        "files": {str(path): size for path, size in weights.files},
        "tokenizer": tokenizer_facts(model),
    }


def tokenizer_facts(model: str) -> dict[str, Any] | None:
    """Class, size and special tokens of a model's tokenizer; None if it has none, or (with a warning) a damaged one."""
    from gptrio import AutoTokenizer
    from gptrio.errors import CheckpointNotFoundError, TokenizationError, warn

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except CheckpointNotFoundError:
        return None
    except TokenizationError as error:
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

    total = facts["parameters"]["total"]
    rows = [("model", facts["model"]), ("family", ", ".join([facts["family"], *facts["architectures"]]))]
    rows += [(_SHOWN[name], f"{value:,}") for name, value in facts["config"].items()]
    rows += [
        ("parameters" if name == "total" else f"  {name}", f"{value:,}" + share(value, total) * (name != "total"))
        for name, value in sorted(facts["parameters"].items(), key=lambda item: item[0] != "total")
    ]
    rows.append(("stored as", ", ".join(facts["stored_as"]) + (" (quantized)" if facts["quantization"] else "")))
    rows += [(f"memory {name}", in_bytes(size)) for name, size in facts["memory"].items()]
    caches = facts["cache_bytes_per_token"].items()
    rows.append(("KV cache, a token", ", ".join(f"{in_bytes(size)} {name}" for name, size in caches)))
    rows += [("file", f"{path} ({in_bytes(size)})") for path, size in facts["files"].items()]
    rows += tokenizer_rows(facts["tokenizer"])
    print_facts(rows)


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


def share(part: int, total: int) -> str:
    """A part of a total in percent."""
    return f" ({part / total:.1%})" if total else ""


def in_bytes(size: int) -> str:
    """A number of bytes in the unit that suits it."""
    unit, factor = next(((unit, factor) for unit, factor in _UNITS if size >= factor), _UNITS[-1])
    return f"{size / factor:,.1f} {unit}"
