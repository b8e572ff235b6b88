"""How well, and how fast, is real data learned, beside Transformers' Trainer?

Text messages (SMS spam), questions to a bank (banking77; all weights, and LoRA), names in messages (WNUT17), questions
about English and Chinese texts (XQuAD), and the characters of Shakespeare (float32 and bfloat16). Both Trainers start
from the same weights and see the same rows in the same order; each run is a process of its own. Seconds are those of
training with its evaluations, without imports and tokenization.

    python benchmarks/real_data.py                             all of both, as a table
    python benchmarks/real_data.py spam --reference            one run of Transformers' Trainer, as a line of JSON
    python benchmarks/real_data.py entities --rows 500 --set learning_rate=1e-3 --set num_train_epochs=2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from _real_problems import PROBLEMS
from _results import print_table, save

DATA = Path(__file__).parents[2] / "shared" / "reference"
HEAD = ("problem", "library", "figures", "updates", "processor s", "seconds", "peak MB")


def change(text: str) -> tuple[str, Any]:
    """A changed argument of the run: NAME=VALUE, the value as in JSON if it is that."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def stopping(library: Any, updates: int) -> Any:
    """A callback that ends a run early, whose schedule is that of the whole."""

    class Stop(library.TrainerCallback):  # type: ignore[misc,name-defined]  # of either library
        """Stops after some updates."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= state.global_step >= updates

    return Stop()


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate in this process."""
    library = "transformers" if arguments.reference else "gptrio"
    torch.set_num_threads(arguments.threads)
    problem = PROBLEMS[arguments.problem](arguments.data, library, arguments.rows, dict(arguments.set))
    with tempfile.TemporaryDirectory() as folder:
        trainer = problem.trainer(Path(folder))
        if arguments.stop is not None:
            trainer.add_callback(stopping(problem.library, arguments.stop))
        wall, processor = time.perf_counter(), time.process_time()
        output = trainer.train()
        trained = time.process_time()
        figures = problem.figures(trainer, Path(folder)) if arguments.stop is None else {}
        seconds = time.perf_counter() - wall, time.process_time() - processor
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    last = [entry["loss"] for entry in losses if entry["epoch"] > losses[-1]["epoch"] - 1]
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "problem": arguments.problem,
        "library": library,
        "figures": {**figures, "last_epoch_loss": sum(last) / max(len(last), 1)},
        "updates": output.global_step,
        "processor_seconds": round(seconds[1], 1),
        "processor_seconds_of_training": round(trained - processor, 1),
        "seconds": round(seconds[0], 1),
        "peak_mb": round(int(peak.split()[1]) / 1024),
        "rows": len(problem.train_rows),
        "log": trainer.state.log_history if arguments.log else None,
    }


def run_all(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Both libraries on every problem, each in a process of its own, one after another."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TRANSFORMERS_VERBOSITY": "error"}
    found = []
    for problem in PROBLEMS:
        for reference in ([], ["--reference"]):
            command = [sys.executable, "-W", "ignore", sys.argv[0], problem, *sys.argv[1:], *reference]
            output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            found.append(json.loads(output.splitlines()[-1]))
    return found


def main() -> None:
    """Print a line of JSON for one problem, or a table of all."""
    parser = argparse.ArgumentParser(description="Fine-tuning on real data.")
    parser.add_argument("problem", nargs="?", choices=PROBLEMS, help="all by default, with both libraries")
    parser.add_argument("--reference", action="store_true", help="train with transformers")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--rows", type=int, help="examples to train on, and to evaluate on; all by default")
    parser.add_argument("--stop", type=int, help="end after so many updates, without an evaluation")
    parser.add_argument("--set", type=change, action="append", default=[], help="NAME=VALUE of an argument of the run")
    parser.add_argument("--log", action="store_true", help="print the log of the run, too")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="the JSON file of the table")
    arguments = parser.parse_args()
    if arguments.problem is not None:
        print(json.dumps(run(arguments)), flush=True)
        return
    found = run_all(arguments)
    rows = []
    for each in found:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in each["figures"].items())
        numbers = (each[name] for name in ("updates", "processor_seconds", "seconds", "peak_mb"))
        rows.append((each["problem"], each["library"], figures, *map(str, numbers)))
    print_table(HEAD, rows)
    save("real-data", {"found": found}, arguments.out)


if __name__ == "__main__":
    main()
