"""How long does it take to read a prompt, beside other engines and the time that its arithmetic takes?

python benchmarks/prefill.py --model gpt2 --dtype bfloat16 --prompt 1000
"""

from __future__ import annotations

import torch

from _checkpoints import checkpoint, weight_counts
from _peers import HEAD, Contender, facts, options, race, report
from _results import print_table, save
from machine import limits


def first_token(contender: Contender, prompts: list[list[int]]) -> tuple[float, list[list[int]]]:
    """Seconds from a prompt to its first new token."""
    reply = contender.ask("generate", prompts=prompts, new=1)
    return reply["seconds"], reply["tokens"]


def main() -> None:
    """Print the table and write the JSON file."""
    parser = options("Prompt processing speed.")
    parser.add_argument("--prompt", type=int, default=1000, help="tokens of each prompt")
    arguments = parser.parse_args()
    folder = checkpoint(arguments.model)
    machine = limits(arguments.threads)
    torch.manual_seed(0)
    prompts = torch.randint(0, 50000, (arguments.batch, arguments.prompt)).tolist()
    load = {"folder": str(folder), "dtype": arguments.dtype, "threads": arguments.threads}
    peers = [name for name in arguments.peers.split(",") if name]
    outcomes = race(peers, load, lambda contender: first_token(contender, prompts), arguments.rounds)
    blocks, head = weight_counts(folder)
    products = 2 * arguments.batch * (arguments.prompt * blocks + head)
    rate = machine.get(arguments.dtype, machine["bfloat16"])
    least = products / rate / 1e9
    print(f"{arguments.model}, {arguments.dtype}, {arguments.batch} x {arguments.prompt} tokens, {arguments.threads}")
    print(f"threads; its products, the head at the last position only, take {least:.3f} s at {rate:.0f} GFLOP/s")
    print_table(HEAD, report(outcomes, least, 1, "s"))
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    save("prefill", {"settings": settings, "limits": machine, "outcomes": facts(outcomes)}, arguments.out)


if __name__ == "__main__":
    main()
