"""How long does one decoding step take, beside other engines and the time that reading the weights takes?

python benchmarks/decode.py --model gpt2 --dtype float32 --batch 1 --peers transformers,ctranslate2,llamacpp,vllm
"""

from __future__ import annotations

from _checkpoints import checkpoint, prompts_for, weights
from _limits import step_limit
from _peers import Engine
from _results import print_table, save
from _runner import HEAD, Comparison, Outcome, facts, options, report, settings
from machine import limits


def decode(comparison: Comparison, prompts: list[list[int]], new: int, rounds: int) -> dict[str, Outcome]:
    """Seconds of one step: a long generation less a short one, by the steps between them.

    The short one is timed before and after the long one, and its lesser time counts: what disturbs it once would be
    taken off the steps otherwise, down to less than nothing.
    """

    def step(engine: Engine) -> tuple[float, list[list[int]]]:
        before, _ = engine.generate(prompts, 1)
        long, tokens = engine.generate(prompts, new + 1)
        after, _ = engine.generate(prompts, 1)
        return (long - min(before, after)) / new, tokens

    return comparison.measure(step, rounds)


def main() -> None:
    """Print the table and write the JSON file."""
    parser = options("Decoding speed.")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="steps that are timed")
    arguments = parser.parse_args()
    folder = checkpoint(arguments.model)
    machine = limits(arguments.threads)
    with Comparison(arguments.peers, folder, arguments.dtype, arguments.threads) as comparison:
        prompts = prompts_for(folder, arguments.batch, arguments.prompt)
        outcomes = decode(comparison, prompts, arguments.new, arguments.rounds)
    limit = step_limit(weights(folder), arguments.dtype, arguments.batch, machine)
    print(f"{arguments.model}, {arguments.dtype}, batch {arguments.batch}, {arguments.threads} threads;")
    print(f"{limit.by} takes {limit.seconds * 1e3:.2f} ms a step (memory reads {machine['read']:.1f} GB/s)")
    print_table(HEAD, report(outcomes, limit, 1e-3, "ms"))
    found = {"settings": settings(arguments), "limits": machine, "limit": limit._asdict(), "outcomes": facts(outcomes)}
    save("decode", found, arguments.out)


if __name__ == "__main__":
    main()
