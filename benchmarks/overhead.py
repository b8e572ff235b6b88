"""How much of a decoding step is not arithmetic? A model of 12 layers whose weights take no time to read tells.

python benchmarks/overhead.py --peers transformers
"""

from __future__ import annotations

import torch

import gptrio
from _checkpoints import cache_folder
from _peers import facts, options, race
from _results import print_table, save
from decode import step_seconds

CONFIG = {"n_layer": 12, "n_embd": 64, "n_head": 4, "vocab_size": 1000}


def main() -> None:
    """Print the table and write the JSON file."""
    parser = options("Time of a decoding step without its arithmetic.")
    parser.add_argument("--new", type=int, default=64, help="steps that are timed")
    parser.set_defaults(threads=1)
    arguments = parser.parse_args()
    folder = cache_folder() / "checkpoints" / "overhead"
    if not (folder / "config.json").exists():
        gptrio.GPT2LMHeadModel(gptrio.GPT2Config(**CONFIG)).save_pretrained(folder)
    prompts = torch.arange(arguments.batch * 32).remainder(1000).view(arguments.batch, 32).tolist()
    load = {"folder": str(folder), "dtype": arguments.dtype, "threads": arguments.threads}
    peers = [name for name in arguments.peers.split(",") if name]
    outcomes = race(peers, load, lambda contender: step_seconds(contender, prompts, arguments.new), arguments.rounds)
    rows = [
        [name, "missing", outcome.missing[:60]]
        if outcome.missing
        else [name, f"{outcome.median * 1e6:.0f} µs", f"{outcome.median / outcomes['gptrio'].median:.2f}"]
        for name, outcome in outcomes.items()
    ]
    print("one step through 12 layers of width 64")
    print_table(["", "median", "gptrio is faster by"], rows)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("out", "model")}
    save("overhead", {"settings": settings, "outcomes": facts(outcomes)}, arguments.out)


if __name__ == "__main__":
    main()
