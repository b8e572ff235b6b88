"""How much memory does `gptrio generate` need for a large model, beside the bytes of its weights?

A checkpoint of GPT-Neo 1.3B's shape with random float16 weights (2.6 GB) is written under the benchmarks' cache folder
on first use. Each way to load it runs in a process of its own, which this script watches from outside: private memory
is Private_Clean + Private_Dirty of Linux's smaps_rollup, the libraries that Python and torch load included. Pages of
the memory-mapped file count where this process alone has them in its tables.

    python benchmarks/memory.py
    python benchmarks/memory.py --ways "float16" int8 --remake
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import gptrio
from _checkpoints import cache_folder
from _results import print_table, save

SHAPES: dict[str, dict[str, Any]] = {
    "gpt-neo-1.3b": {},  # what GPTNeoConfig describes by default
    "tiny": {"hidden_size": 256, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
}
WAYS = {
    "as stored": ["--dtype", "auto"],
    "bfloat16": ["--dtype", "bfloat16"],
    "float32": ["--dtype", "float32"],
    "int8": ["--quantize", "int8"],
    "int4": ["--quantize", "int4"],
}
LIMITS = {"as stored": 1.15, "int8": 1.0, "int4": 1.0}  # of the bytes of the stored weights
SHIPPED = "gptrio/stdlib-gpt2"


def make_checkpoint(folder: Path, config: gptrio.GPTNeoConfig) -> None:
    """Write random float16 weights tensor by tensor, and the shipped model's tokenizer beside them."""
    with torch.device("meta"):
        model = gptrio.GPTNeoForCausalLM(config)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    torch.manual_seed(0)
    with (folder / "partial").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            is_norm = "ln_" in name and name.endswith("weight")
            values = torch.ones(shape) if is_norm else torch.randn(shape).mul_(0.02)
            file.write(values.half().numpy().tobytes())
    config.save_pretrained(folder)
    gptrio.AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(folder)
    (folder / "partial").rename(folder / "model.safetensors")


def private_bytes(process: int) -> int:
    """Private resident memory of a process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def watch(folder: Path, arguments: list[str], tokens: int, threads: int) -> dict[str, Any]:
    """Run `gptrio generate` and sample its private memory: the most, and the median of its last quarter."""
    command = [sys.executable, "-m", "gptrio", "generate", "import os", "--model", os.fspath(folder), "--greedy"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    samples, start = [], time.perf_counter()
    with subprocess.Popen(
        [*command, "--max-new-tokens", str(tokens), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        while process.poll() is None:
            samples.append(private_bytes(process.pid))
            time.sleep(0.05)
        assert process.stderr is not None
        if process.returncode:
            raise SystemExit(f"gptrio generate {' '.join(arguments)} failed: {process.stderr.read()}")
    seen = [sample for sample in samples if sample]
    late = sorted(seen[-max(len(seen) // 4, 1) :])
    return {"peak": max(seen), "steady": late[len(late) // 2], "seconds": time.perf_counter() - start}


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description="Memory of `gptrio generate`.")
    parser.add_argument("--shape", choices=SHAPES, default="gpt-neo-1.3b")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="how to load it")
    parser.add_argument("--tokens", type=int, default=20, help="tokens to generate")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--remake", action="store_true", help="write the checkpoint anew")
    parser.add_argument("--delete", action="store_true", help="delete the checkpoint in the end")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    folder = cache_folder() / "checkpoints" / f"{arguments.shape}-float16"
    file = folder / "model.safetensors"
    if arguments.remake or not file.exists():
        make_checkpoint(folder, gptrio.GPTNeoConfig(**SHAPES[arguments.shape]))
    weights = file.stat().st_size
    found = {way: watch(folder, WAYS[way], arguments.tokens, arguments.threads) for way in arguments.ways}
    print(f"{arguments.shape}: {weights / 1e6:.0f} MB of float16 weights; private memory as a multiple of them")
    print_table(
        ("", "peak", "steady", "limit of the peak", "seconds"),
        [
            (
                way,
                f"{seen['peak'] / weights:.3f}",
                f"{seen['steady'] / weights:.3f}",
                f"{LIMITS[way]:.2f}" if way in LIMITS else "",
                f"{seen['seconds']:.1f}",
            )
            for way, seen in found.items()
        ],
    )
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    save("memory", {"settings": settings, "weights": weights, "ways": found}, arguments.out)
    if arguments.delete:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
