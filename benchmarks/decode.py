"""How long does one decoding step take, beside other engines and the time that reading the weights takes?

python benchmarks/decode.py --model gpt2 --dtype float32 --batch 1 --peers transformers,ctranslate2
"""

from __future__ import annotations

import torch

from _checkpoints import checkpoint, weight_bytes
from _peers import HEAD, Contender, facts, options, race, report
from _results import print_table, save
from machine import limits


def step_seconds(contender: Contender, prompts: list[list[int]], new: int) -> tuple[float, list[list[int]]]:
    """Seconds of one step: a long generation less a short one, by the steps between them."""
    short = contender.ask("generate", prompts=prompts, new=1)
    long = contender.ask("generate", prompts=prompts, new=new + 1)
    return (long["seconds"] - short["seconds"]) / new, long["tokens"]


def main() -> None:
    """Print the table and write the JSON file."""
    parser = options("Decoding speed.")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="steps that are timed")
    arguments = parser.parse_args()
    folder = checkpoint(arguments.model)
    machine = limits(arguments.threads)
    torch.manual_seed(0)
    prompts = torch.randint(0, 50000, (arguments.batch, arguments.prompt)).tolist()
    load = {"folder": str(folder), "dtype": arguments.dtype, "threads": arguments.threads}
    peers = [name for name in arguments.peers.split(",") if name]
    outcomes = race(peers, load, lambda contender: step_seconds(contender, prompts, arguments.new), arguments.rounds)
    reading = weight_bytes(folder, arguments.dtype) / machine["read"] / 1e9
    print(f"{arguments.model}, {arguments.dtype}, batch {arguments.batch}, {arguments.threads} threads; reading the")
    print(f"weights once at {machine['read']:.1f} GB/s takes {reading * 1e3:.2f} ms")
    print_table(HEAD, report(outcomes, reading, 1e-3, "ms"))
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    save("decode", {"settings": settings, "limits": machine, "outcomes": facts(outcomes)}, arguments.out)


if __name__ == "__main__":
    main()
