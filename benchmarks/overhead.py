"""What does `generate` cost where there is next to no arithmetic? A toy model of two layers tells.

Both libraries hold the same weights and run in this process in turn; both must write the same tokens.

    python benchmarks/overhead.py --rounds 7
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import gptrio
from _results import print_table, save

SIZES = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": None}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
    "gpt_neo": (
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
    ),
}


def build(family: str) -> tuple[Any, Any]:
    """Our model of a family and the peer's, with the same random weights."""
    config, model, sizes = FAMILIES[family]
    torch.manual_seed(0)
    ours = getattr(gptrio, model)(getattr(gptrio, config)(**SIZES, **sizes)).eval()
    peer = getattr(transformers, model)(getattr(transformers, config)(**SIZES, **sizes)).eval()
    peer.load_state_dict(ours.state_dict())
    return ours, peer


def seconds_per_token(model: Any, ids: torch.Tensor, new: int) -> tuple[float, torch.Tensor]:
    """Time of one new token, prompt included, and the tokens (B, T)."""
    begun = time.perf_counter()
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
    return (time.perf_counter() - begun) / new, tokens


def race(family: str, batch: int, new: int, rounds: int) -> tuple[float, float]:
    """Median seconds a token of ours and of the peer, in turn, after a round that does not count."""
    models, ids = build(family), torch.randint(1, 97, (batch, 8))
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        runs = [seconds_per_token(model, ids, new) for model in models]
        assert torch.equal(runs[0][1], runs[1][1]), f"{family}: the two libraries wrote different tokens"
        for kept, (seconds, _) in zip(times, runs, strict=True):
            kept.extend([seconds] if turn else [])
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=200, help="tokens that are generated")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    times = {family: race(family, arguments.batch, arguments.new, arguments.rounds) for family in FAMILIES}
    rows = [
        [family, f"{ours * 1e6:.0f} µs", f"{peer * 1e6:.0f} µs", f"{peer / ours:.2f}"]
        for family, (ours, peer) in times.items()
    ]
    print(f"generate, 2 layers of width 32, greedy, batch {arguments.batch}, per token")
    print_table(["", "gptrio", "transformers", "gptrio is faster by"], rows)
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    save("overhead", {"settings": settings, "seconds": times}, arguments.out)


if __name__ == "__main__":
    main()
