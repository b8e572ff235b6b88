"""The part of `Trainer` that logs, prints and writes metrics."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from gptrio.hub import write_text
from gptrio.training.parts import TrainerParts
from gptrio.training.results import speed_metrics


class MetricsMixin(TrainerParts):
    """Logs; each method can be overridden."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add metrics to the history and hand them to the callbacks.

        Args:
            logs: the metrics; the epoch is added to them.
            start_time: of the run, for the tokens per second if they are counted.
        """
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        if self.args.include_num_input_tokens_seen:
            seen = self.state.num_input_tokens_seen
            logs["num_input_tokens_seen"] = seen
            if start_time is not None:
                logs.update(speed_metrics("train", start_time, num_tokens=seen))
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def metrics_format(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """The metrics in a form for people: hours, megabytes, four digits."""
        return {name: _shown(name, value) for name, value in metrics.items()}

    def log_metrics(self, split: str, metrics: dict[str, Any]) -> None:
        """Print metrics as a table.

        Args:
            split: "train", "eval" or "test", for the heading.
            metrics: as `train`, `evaluate` or `predict` return them.
        """
        if not self.is_world_process_zero():
            return
        rows = {name: str(value) for name, value in sorted(self.metrics_format(metrics).items())}
        names, values = max(map(len, rows), default=0), max(map(len, rows.values()), default=0)
        print(f"***** {split} metrics *****")
        for name, value in rows.items():
            print(f"  {name:<{names}} = {value:>{values}}")

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        """Write metrics to `SPLIT_results.json` in the output folder.

        Args:
            split: "train", "eval", "test" or "all".
            metrics: as `train`, `evaluate` or `predict` return them.
            combined: also add them to `all_results.json`.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{split}_results.json", metrics)
        if combined:
            path = folder / "all_results.json"
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            _write(path, {**known, **metrics})

    def save_state(self) -> None:
        """Write the state of the run to `trainer_state.json` in the output folder."""
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.state.save_to_json(folder / "trainer_state.json")


def _write(path: Path, metrics: dict[str, Any]) -> None:
    write_text(path, json.dumps(metrics, indent=4, sort_keys=True))


def _shown(name: str, value: Any) -> Any:
    if "_mem_" in name:
        return f"{value >> 20}MB"
    if "_runtime" in name:
        hundredths = int(abs(value - int(value)) * 100)
        return f"{datetime.timedelta(seconds=int(value))}.{hundredths:02d}"
    if name == "total_flos":
        return f"{int(value) >> 30}GF"
    return round(value, 4) if isinstance(value, float) else value
