"""How long does it take to read a prompt, beside other engines and the time that its arithmetic takes?

python benchmarks/prefill.py --model gpt2 --dtype bfloat16 --prompt 1000
"""

from __future__ import annotations

from _checkpoints import checkpoint, prompts_for, weights
from _limits import prompt_limit
from _results import print_table, save
from _runner import HEAD, Comparison, Outcome, facts, options, report, settings
from machine import limits


def prefill(comparison: Comparison, prompts: list[list[int]], rounds: int) -> dict[str, Outcome]:
    """Seconds from prompts to their first new tokens."""
    return comparison.measure(lambda engine: engine.generate(prompts, 1), rounds)


def main() -> None:
    """Print the table and write the JSON file."""
    parser = options("Prompt processing speed.")
    parser.add_argument("--prompt", type=int, default=1000, help="tokens of each prompt")
    arguments = parser.parse_args()
    folder = checkpoint(arguments.model)
    machine = limits(arguments.threads)
    with Comparison(arguments.peers, folder, arguments.dtype, arguments.threads) as comparison:
        outcomes = prefill(comparison, prompts_for(folder, arguments.batch, arguments.prompt), arguments.rounds)
    limit = prompt_limit(weights(folder), arguments.dtype, arguments.batch, arguments.prompt, machine)
    print(f"{arguments.model}, {arguments.dtype}, {arguments.batch} x {arguments.prompt} tokens, {arguments.threads}")
    print(f"threads; {limit.by} takes {limit.seconds:.3f} s, the head at the last position only")
    print_table(HEAD, report(outcomes, limit, 1, "s"))
    found = {"settings": settings(arguments), "limits": machine, "limit": limit._asdict(), "outcomes": facts(outcomes)}
    save("prefill", found, arguments.out)


if __name__ == "__main__":
    main()
