"""How fast is gptrio beside every engine that runs a model on this CPU? One table, one chart, in one run.

Each engine is loaded once for each dtype; the engines then take turns at every row of the table. A cell says how many
times faster gptrio is; "16 bit" is the faster of bfloat16 and float16 for each engine on its own.

    python benchmarks/table.py --model gpt2                          # runs everything, prints Markdown, writes JSON
    python benchmarks/table.py --model gpt2 --docs                   # also puts it into docs/
    python benchmarks/table.py --read gpt2.json pythia.json --docs   # renders again what was measured
"""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _chart import Group, Panel, chart
from _checkpoints import checkpoint, prompts_for, weights
from _limits import NOT_MEASURED, Limit, is_possible, prompt_limit, share_of, step_limit
from _peers import ROOT
from _results import save
from _runner import Comparison, Outcome, facts, names, options, settings
from decode import decode
from load import ONCE, load
from machine import limits
from prefill import prefill

TITLES = {
    "gptrio": "gptrio",
    "transformers": "transformers 4.56.2",
    "ctranslate2": "CTranslate2",
    "llamacpp": "llama.cpp",
    "vllm": "vLLM (CPU)",
}
PROMPT, NEW, LONG_PROMPT = 32, 64, 1000  # tokens
ROW_SECONDS = 30  # after which a row begins no further round
DOCUMENT = ROOT / "docs" / "performance.md"


@dataclass(frozen=True)
class Row:
    """What is measured: a step of decoding, a long prompt, or loading."""

    kind: str
    dtype: str
    batch: int = 1

    @property
    def title(self) -> str:
        """As the table names it."""
        dtype = {"16bit": "16 bit"}.get(self.dtype, self.dtype)
        what = {
            "decode": f"decode, batch {self.batch}",
            "prefill": "prefill 1,000 tokens",
            "load": "load to first token",
        }
        return f"{what[self.kind]}, {dtype}"


ROWS = (
    *(Row("decode", dtype) for dtype in ("float32", "16bit", "int8", "int4")),
    *(Row("decode", "16bit", batch) for batch in (8, 32)),
    Row("decode", "int8", 8),
    *(Row("prefill", dtype) for dtype in ("float32", "16bit", "int8")),
    *(Row("load", dtype) for dtype in ("float32", "16bit")),
)


@dataclass
class Measured:
    """A row of the table with what came out: as JSON files hold it."""

    row: Row
    limit: Limit | None
    outcomes: dict[str, dict[str, Any]]

    def median(self, peer: str) -> float | None:
        """Seconds, or None where they were not measured or one of them cannot be."""
        seconds = self.outcomes.get(peer, {}).get("seconds")
        return statistics.median(seconds) if seconds and all(map(is_possible, seconds)) else None

    def was_spoilt(self, peer: str) -> bool:
        """Whether a peer ran, and what was measured cannot be."""
        outcome = self.outcomes.get(peer, {})
        return self.median(peer) is None and (bool(outcome.get("seconds")) or outcome.get("missing") == NOT_MEASURED)

    def ratio(self, peer: str) -> float | None:
        """How many times faster gptrio is."""
        ours, theirs = self.median("gptrio"), self.median(peer)
        return theirs / ours if ours and theirs else None


def measure(row: Row, comparison: Comparison, folder: Path, rounds: int) -> dict[str, Outcome]:
    """One row, by engines that hold the model in the row's dtype."""
    if row.kind == "load":
        return comparison.starts()
    if row.kind == "prefill":
        return prefill(comparison, prompts_for(folder, 1, LONG_PROMPT), rounds)
    return decode(comparison, prompts_for(folder, row.batch, PROMPT), NEW, rounds)


def limit_of(row: Row, folder: Path, machine: dict[str, float]) -> Limit | None:
    """Least time that the machine allows for a row."""
    if row.kind == "load":
        return None
    if row.kind == "prefill":
        return prompt_limit(weights(folder), row.dtype, 1, LONG_PROMPT, machine)
    return step_limit(weights(folder), row.dtype, row.batch, machine)


def run(arguments: Any, folder: Path) -> dict[Row, dict[str, Outcome]]:
    """Measure all rows, one dtype after the other; who takes long to load runs in 16 bit alone."""
    rows = [row for row in ROWS if not arguments.dtypes or row.dtype in arguments.dtypes]
    found: dict[Row, dict[str, Outcome]] = {}
    for dtype in dict.fromkeys(row.dtype for row in rows):
        peers = [peer for peer in arguments.peers if peer not in ONCE or dtype == "16bit"]
        with Comparison(peers, folder, dtype, arguments.threads, ROW_SECONDS) as comparison:
            for row in (row for row in rows if row.dtype == dtype and row != Row("load", "float32")):
                print(row.title, flush=True)
                found[row] = measure(row, comparison, folder, arguments.rounds)
    if Row("load", "float32") in rows:
        print(Row("load", "float32").title, flush=True)
        peers = [peer for peer in arguments.peers if peer not in ONCE]
        found[Row("load", "float32")] = load(peers, folder, "float32", arguments.threads, arguments.rounds)
    return {row: found[row] for row in rows}


def as_json(measured: list[Measured]) -> list[dict[str, Any]]:
    """Rows for the JSON file."""
    return [
        {"row": asdict(each.row), "limit": each.limit and each.limit._asdict(), "outcomes": each.outcomes}
        for each in measured
    ]


def from_json(rows: list[dict[str, Any]]) -> list[Measured]:
    """Rows of the JSON file."""
    return [Measured(Row(**each["row"]), each["limit"] and Limit(**each["limit"]), each["outcomes"]) for each in rows]


def markdown(found: dict[str, Any]) -> str:
    """The tables of a JSON file: ratios, then times beside the limit of the machine, then why cells are empty."""
    measured = from_json(found["rows"])
    peers = [peer for peer in TITLES if peer != "gptrio" and any(peer in each.outcomes for each in measured)]
    ratios = [[each.row.title, *(_number(each.ratio(peer), ".2f") for peer in peers)] for each in measured]
    times = [_times(each, peers) for each in measured]
    machine = found["limits"]
    rates = ", ".join(f"{name} {machine[name]:.0f}" for name in ("float32", "bfloat16", "float16", "int8"))
    return "\n\n".join(
        [
            "How many times faster gptrio is:",
            _table(["", *(TITLES[peer] for peer in peers)], ratios),
            f"Milliseconds (loading: seconds). This machine reads {machine['read']:.1f} GB/s and multiplies matrices "
            f"at {rates} GFLOP/s, {found['settings']['threads']} threads:",
            _table(["", "gptrio", "limit", "share", "limited by", *(TITLES[peer] for peer in peers)], times),
            _notes(measured, peers),
        ]
    )


def _times(each: Measured, peers: list[str]) -> list[str]:
    """A row of times: ours, the limit, our share of it, what limits, and theirs."""
    unit, ours = 1 if each.row.kind == "load" else 1e-3, each.median("gptrio")
    limit = ["", "", ""]
    if each.limit and ours:
        limit = [f"{each.limit.seconds / unit:.1f}", share_of(each.limit, ours), each.limit.by]
    shown = [_time(each, peer, unit) for peer in ("gptrio", *peers)]
    return [each.row.title, shown[0], *limit, *shown[1:]]


def _time(each: Measured, peer: str, unit: float) -> str:
    median = each.median(peer)
    if median is None:
        return NOT_MEASURED if each.was_spoilt(peer) else ""
    kind = {"bfloat16": " bf16", "float16": " f16"}.get(each.outcomes[peer]["dtype"], "")
    return f"{median / unit:.{2 if unit == 1 else 1}f}{kind}"


def _notes(measured: list[Measured], peers: list[str]) -> str:
    """Lines below the tables: tokens that agree, and who is missing."""
    lines = []
    for each in measured:
        shares = {peer: each.outcomes[peer].get("agreement") for peer in peers if peer in each.outcomes}
        shown = [f"{TITLES[peer]} {share:.0%}" for peer, share in shares.items() if share is not None]
        if each.row == Row("decode", each.row.dtype) and shown:
            lines.append(f"- Tokens that are gptrio's until the first other one, {each.row.title}: {', '.join(shown)}.")
    absent = dict.fromkeys(
        (peer, each.outcomes[peer]["missing"].split(" (see ")[0])
        for each in measured
        for peer in peers
        if not each.outcomes.get(peer, {}).get("missing", "not offered").startswith(("not offered", NOT_MEASURED))
    )
    lines += [f"- {TITLES[peer]} is missing: {reason}." for peer, reason in absent if reason]
    if any(each.was_spoilt(peer) for each in measured for peer in ("gptrio", *peers)):
        lines.append(f"- A cell says {NOT_MEASURED!r} where the machine was disturbed and the figure cannot be.")
    return "\n".join(["- Where a cell is empty, the engine does not offer it; vLLM runs in 16 bit alone.", *lines])


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put(document: str, model: str, text: str) -> str:
    """A document with `text` between the marks of a model, which are added at its end if it has none."""
    begin, end = f"<!-- {model}: written by benchmarks/table.py -->", f"<!-- {model}: end -->"
    block = f"{begin}\n{text}\n{end}"
    if begin not in document:
        return f"{document.rstrip()}\n\n{block}\n"
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: block, document, flags=re.DOTALL)


def publish(found: dict[str, Any]) -> None:
    """Write the tables into docs/performance.md and the chart beside it."""
    model = Path(found["settings"]["model"]).name
    text = DOCUMENT.read_text(encoding="utf-8")
    drawing = DOCUMENT.with_name(f"speed-{model}.svg")
    drawing.write_text(drawn(found), encoding="utf-8")
    head = f"### {model}\n\n![Speed of {model} in every engine]({drawing.name})\n\n"
    DOCUMENT.write_text(put(text, model, head + markdown(found)), encoding="utf-8")


def drawn(found: dict[str, Any]) -> str:
    """The chart of a JSON file: tokens a second, generated and read; only the first are near a limit."""
    unit, rows = "tokens per second, more is better", from_json(found["rows"])
    return chart(
        [
            Panel("Generating, one text", unit, _groups(rows, "decode", 1)),
            Panel("Reading a prompt of 1,000 tokens", unit, _groups(rows, "prefill", LONG_PROMPT)),
        ]
    )


def _groups(rows: list[Measured], kind: str, tokens: int) -> dict[str, Group]:
    """Bars of each dtype."""
    groups = {}
    for each in rows:
        if each.row.kind == kind and each.row.batch == 1:
            values = {TITLES[peer]: tokens / median for peer in TITLES if (median := each.median(peer))}
            limit = tokens / each.limit.seconds if each.limit and kind == "decode" else None
            groups[each.row.dtype.replace("16bit", "16 bit")] = Group(values, limit)
    return groups


def main() -> None:
    """Run or read, print, write."""
    parser = options(__doc__ or "")
    parser.add_argument("--dtypes", type=names, default=(), help="rows to run: float32,16bit,int8,int4; all by default")
    parser.add_argument("--read", type=Path, nargs="+", help="JSON files to render instead of a run")
    parser.add_argument("--docs", action="store_true", help="write into docs/performance.md and docs/speed-MODEL.svg")
    arguments = parser.parse_args()
    if arguments.read:
        results = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.read]
    else:
        folder, machine = checkpoint(arguments.model), limits(arguments.threads)
        found = run(arguments, folder)
        again = limits(arguments.threads)  # what disturbs the machine at one time may be gone at another
        machine = {name: max(rate, again[name]) for name, rate in machine.items()}
        rows = as_json([Measured(row, limit_of(row, folder, machine), facts(found[row])) for row in found])
        results = [{"settings": settings(arguments), "limits": machine, "rows": rows}]
        save("table", results[0], arguments.out)
    for found in results:
        print(f"\n## {found['settings']['model']}\n\n{markdown(found)}")
        if arguments.docs:
            publish(found)


if __name__ == "__main__":
    main()
