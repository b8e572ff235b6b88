"""What does each precision cost? Perplexity on text that the model has not seen, beside float32.

The text is the held-out part of the running Python's own standard library (see `examples/pretrain_stdlib.py`), which
the shipped model never saw and any machine has; another model needs another text. A window of the model's context
slides by half of it, and each token is scored once. The logits' error is the largest one in the first windows, in units
of the standard deviation of float32's logits. The reference is transformers, which runs the same bitsandbytes (bnb).

    python benchmarks/quality.py
    python benchmarks/quality.py --model FOLDER --text book.txt --tokens 50000
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import os
import runpy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from _results import print_table, save
from gptrio import AutoTokenizer
from gptrio.kernels.linear import packed_inference

PRETRAIN = Path(__file__).parents[1] / "examples" / "pretrain_stdlib.py"
HEAD = ("", "perplexity", "from float32", "bits per byte", "MB", "logit error")
COMPARED = 4  # windows whose logits are compared with float32's
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8 = {"load_in_8bit": True}

# row of the table -> library, dtype, and its quantization_config: class and options; the reference is transformers
CONTENDERS: dict[str, tuple[str, str, tuple[str, dict[str, Any]] | None]] = {
    "float32": ("gptrio", "float32", None),
    "float32, reference": ("transformers", "float32", None),
    "bfloat16": ("gptrio", "bfloat16", None),
    "float16": ("gptrio", "float16", None),
    "int8": ("gptrio", "float32", ("Int8Config", {})),
    **{f"int4, groups of {n}": ("gptrio", "float32", ("Int4Config", {"group_size": n})) for n in (32, 64, 128)},
    "bnb int8": ("gptrio", "float32", ("BitsAndBytesConfig", INT8)),
    "bnb int8, reference": ("transformers", "float32", ("BitsAndBytesConfig", INT8)),
    "bnb nf4": ("gptrio", "float32", ("BitsAndBytesConfig", NF4)),
    "bnb nf4, reference": ("transformers", "float32", ("BitsAndBytesConfig", NF4)),
}


@dataclass
class Score:
    """How well a model predicts a text.

    Attributes:
        nats: of a token, on average.
        tokens: that were scored.
        megabytes: that its weights take, as `state_dict` holds them.
        logits: (N, V) of the first windows.
    """

    nats: float
    tokens: int
    megabytes: float
    logits: Tensor

    @property
    def perplexity(self) -> float:
        """Of a token."""
        return math.exp(self.nats)


def held_out_text() -> list[str]:
    """The files of the standard library that the shipped model has not seen."""
    script = runpy.run_path(os.fspath(PRETRAIN))
    modules = script["read_modules"]()
    return [data.decode() for name, files in modules.items() if script["is_held_out"](name) for data in files]


def encode(tokenizer: Any, texts: list[str], most: int | None) -> tuple[Tensor, int]:
    """Ids (T,) of texts, each after an end-of-text token if there is one, cut to `most`; and how many bytes that is."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = torch.tensor([token for text in texts for token in [*end, *tokenizer(text, verbose=False).input_ids]])[:most]
    return ids, len(tokenizer.decode(ids[1:], skip_special_tokens=True).encode())


def windows(ids: Tensor, context: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Inputs (1, T), targets (T,), and how many of them an earlier window has scored."""
    stride = context // 2
    for start in range(0, max(len(ids) - 1 - stride, 1), stride):
        window = ids[start : start + context + 1]
        yield window[None, :-1], window[1:], stride if start else 0


def state_bytes(model: Any) -> int:
    """Bytes of a model's weights as files would hold them, shared ones once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.state_dict().values()}
    return sum(storages.values())


@torch.inference_mode()
def score(model: Any, ids: Tensor) -> Score:
    """Let a model predict ids (T,)."""
    nats, kept = 0.0, []
    for number, (inputs, targets, seen) in enumerate(windows(ids, model.config.max_position_embeddings)):
        logits = model(inputs, use_cache=False).logits[0].float()  # (T, V)
        nats += F.cross_entropy(logits[seen:], targets[seen:], reduction="sum").item()
        if number < COMPARED:
            kept.append(logits)
    return Score(nats / (len(ids) - 1), len(ids) - 1, state_bytes(model) / 1e6, torch.cat(kept))


def contender_score(name: str, model_name: str, ids: Tensor) -> Score:
    """Load an engine and let it predict ids (T,)."""
    library, dtype, quantization = CONTENDERS[name]
    module = importlib.import_module(library)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if quantization is not None:
        kind, fields = quantization
        options["quantization_config"] = getattr(module, kind)(**fields)
        options |= {"device_map": "cpu"} if library == "transformers" else {}
    model = module.AutoModelForCausalLM.from_pretrained(model_name, **options).eval()
    if library == "transformers":
        return score(model, ids)
    with packed_inference(model):
        return score(model, ids)


def folder_of(model: str) -> str:
    """The folder of a packaged model, which `transformers` does not know by name; others as they are."""
    from gptrio.hub import locate_file

    config = locate_file(model, "config.json")
    return model if config is None else os.fspath(config.parent)


def rows(scores: dict[str, Score], bytes_scored: int) -> Iterator[dict[str, Any]]:
    """Facts of each engine, beside float32."""
    base = scores["float32"]
    spread = base.logits.std(dim=1).mean().item()
    for name, found in scores.items():
        yield {
            "name": name,
            "perplexity": found.perplexity,
            "percent": 100 * (found.perplexity / base.perplexity - 1),
            "bits_per_byte": found.nats * found.tokens / math.log(2) / bytes_scored,
            "megabytes": found.megabytes,
            "logit_error": (found.logits - base.logits).abs().max().item() / spread,
        }


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    numbers = (f"{row['perplexity']:.4f}", f"{row['percent']:+.3f} %", f"{row['bits_per_byte']:.4f}")
    return [row["name"], *numbers, f"{row['megabytes']:.2f}", f"{row['logit_error']:.4f}"]


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description="Perplexity at each precision.")
    parser.add_argument("--model", default="gptrio/stdlib-gpt2", help="name or folder of a model")
    parser.add_argument("--text", type=Path, help="text to predict; by default held-out files of the standard library")
    parser.add_argument("--tokens", type=int, help="score only so many tokens")
    parser.add_argument("--only", nargs="*", help="rows of the table, beside float32; by default all")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for each product otherwise

    folder = folder_of(arguments.model)
    texts = [arguments.text.read_text(encoding="utf-8")] if arguments.text else held_out_text()
    ids, size = encode(AutoTokenizer.from_pretrained(folder), texts, arguments.tokens)
    names = [name for name in CONTENDERS if name == "float32" or not arguments.only or name in arguments.only]
    found = list(rows({name: contender_score(name, folder, ids) for name in names}, size))
    print(f"{arguments.model}: {len(ids) - 1} tokens, {size} bytes of {arguments.text or 'held-out standard library'}")
    print_table(HEAD, map(cells, found))
    settings = {name: str(value) for name, value in vars(arguments).items() if name != "out"}
    save("quality", {"settings": settings, "tokens": len(ids) - 1, "bytes": size, "rows": found}, arguments.out)


if __name__ == "__main__":
    main()
