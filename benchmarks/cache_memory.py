"""How much memory does each cache take, beside one that keeps the whole past of every row as it is?

Random keys and values of a named model's shape are fed as `generate` would: a prompt, then tokens one by one. Counted
is every tensor that the cache holds on to, with its room to spare; for offloaded caches apart what waits in the memory
of the host. `full` is what the positions themselves need: 2 (keys, values) x layers x rows x heads x positions x head
width x bytes. The prefix rows share a prompt; the time is what one token costs in all layers, attention not included.

    python benchmarks/cache_memory.py --shape gpt_neo --rows 8 --prompt 1024 --new 128
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache as TransformersDynamicCache
from transformers import StaticCache as TransformersStaticCache

from _results import print_table, save
from gptrio import GPT2Config, GPTNeoConfig, GPTNeoXConfig, PretrainedConfig, PromptPrefix
from gptrio.cache import make_cache
from gptrio.cache.offloaded import OffloadedLayer
from gptrio.cache.protocol import windows_of

SHAPES: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(n_positions=2048),  # 124M
    "gpt_neo": GPTNeoConfig(hidden_size=768, num_layers=12, num_heads=12, attention_types=[[["global", "local"], 6]]),
    "gpt_neox": GPTNeoXConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
}  # 125M, 160M
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamic": ("dynamic", {}),
    "dynamic_full": ("dynamic_full", {}),
    "static": ("static", {}),
    "quantized int8": ("quantized", {"nbits": 8}),
    "quantized int4": ("quantized", {"nbits": 4}),
    "quantized int2": ("quantized", {"nbits": 2}),
    "offloaded": ("offloaded", {}),
    "offloaded_static": ("offloaded_static", {}),
}


def held(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that can be reached from `thing` over attributes, lists, tuples and dictionaries."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, (list, tuple, dict)):
        for part in thing.values() if isinstance(thing, dict) else thing:
            yield from held(part, seen)
    elif hasattr(thing, "__dict__") and id(thing) not in seen:
        seen.add(id(thing))
        yield from held(vars(thing), seen)


def stored_bytes(things: Any) -> int:
    """Bytes of the storages behind all tensors of `things`, each counted once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held(things, set())
    }
    return sum(storages.values())


def feed(cache: Any, config: PretrainedConfig, rows: int, length: int, start: int, dtype: torch.dtype) -> float:
    """Append `length` positions to every layer; the seconds that the cache took."""
    shape = (rows, config.num_attention_heads, length, config.hidden_size // config.num_attention_heads)
    keys, values, taken = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), 0.0
    told = {"cache_position": torch.arange(start, start + length)}
    for layer in range(config.num_hidden_layers):
        begin = time.perf_counter()
        cache.update(keys, values, layer, told)
        taken += time.perf_counter() - begin
    return taken


def measure(cache: Any, config: PretrainedConfig, arguments: argparse.Namespace, past: int = 0) -> dict[str, float]:
    """Bytes that a cache holds after the prompt and the new tokens, and the median milliseconds of a token."""
    dtype = getattr(torch, arguments.dtype)
    if past < arguments.prompt:
        feed(cache, config, arguments.rows, arguments.prompt - past, past, dtype)
    times = [feed(cache, config, arguments.rows, 1, arguments.prompt + i, dtype) for i in range(arguments.new)]
    layers = getattr(cache, "layers", ())
    host = stored_bytes([layer._host for layer in layers if isinstance(layer, OffloadedLayer)])
    return {
        "bytes": stored_bytes(cache.layers) - host,
        "host_bytes": host,
        "ms_per_token": 1000 * statistics.median(times),
    }


def a_prefix(config: PretrainedConfig, length: int, dtype: torch.dtype) -> PromptPrefix:
    """A prompt of random keys and values."""
    width = config.hidden_size // config.num_attention_heads
    layers = []
    for window in windows_of(config):
        kept = length if window is None else min(length, window + 63)
        keys, values = (torch.randn(1, config.num_attention_heads, kept, width).to(dtype) for _ in range(2))
        layers.append((keys, values))
    return PromptPrefix(torch.zeros(1, length, dtype=torch.long), layers, windows_of(config), {})


def engines(config: PretrainedConfig, arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """What makes each cache."""
    dtype, length = getattr(torch, arguments.dtype), arguments.prompt + arguments.new

    def ours(name: str, options: dict[str, Any]) -> Callable[[], Any]:
        return lambda: make_cache(name, config, arguments.rows, length, "cpu", dtype, options)

    made = {row: ours(name, options) for row, (name, options) in NAMES.items()}
    made["shared prefix"] = lambda: a_prefix(config, arguments.prompt, dtype).new_cache(arguments.rows)
    upstream = _as_upstream(config)
    made["transformers dynamic"] = lambda: TransformersDynamicCache(config=upstream)
    made["transformers static"] = lambda: TransformersStaticCache(config=upstream, max_cache_len=length)
    return made


def _as_upstream(config: PretrainedConfig) -> Any:
    import transformers

    return getattr(transformers, type(config).__name__)(**config.to_diff_dict())


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description="Memory of each cache.")
    parser.add_argument(
        "--shape", choices=SHAPES, default="gpt2", help="model whose layers, heads and windows are used"
    )
    parser.add_argument("--rows", type=int, default=8, help="rows of the batch")
    parser.add_argument("--prompt", type=int, default=1024, help="positions of the prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens after it, one by one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()

    config = SHAPES[arguments.shape]
    width = {"float32": 4}.get(arguments.dtype, 2)
    length = arguments.prompt + arguments.new
    full = 2 * config.num_hidden_layers * arguments.rows * config.hidden_size * length * width
    results: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        for name, make in engines(config, arguments).items():
            cache = make()
            results[name] = measure(cache, config, arguments, cache.get_seq_length())
    print_table(
        ("cache", "MB", "share of full", "MB in the host", "ms per token"),
        [("full", f"{full / 1e6:.1f}", "1.00", "", "")]
        + [
            (
                name,
                f"{found['bytes'] / 1e6:.1f}",
                f"{found['bytes'] / full:.2f}",
                f"{found['host_bytes'] / 1e6:.1f}" if found["host_bytes"] else "",
                f"{found['ms_per_token']:.2f}",
            )
            for name, found in results.items()
        ],
    )
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    save("cache_memory", {**settings, "full_bytes": full, "caches": results}, arguments.out)


if __name__ == "__main__":
    main()
