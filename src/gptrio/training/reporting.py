"""Callbacks that report logs to TensorBoard, trackio, wandb or a CSV file; each imports its package when it is made.

Nothing is imported, and nothing leaves this machine, unless `report_to` names a place, or is left out or "all" while
one of these packages is installed.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptrio.errors import UnsupportedError, import_optional, nearest, warn
from gptrio.training.callbacks import TrainerCallback
from gptrio.utils.installed import is_installed, is_set

if TYPE_CHECKING:
    from gptrio.training.arguments import TrainingArguments
    from gptrio.training.callbacks import Decision
    from gptrio.training.state import TrainerControl, TrainerState

_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",)}
REPORTERS = (*_PACKAGES, "csv")
_OF_THE_WHOLE_RUN = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")


def get_available_reporting_integrations() -> list[str]:
    """Names of the places to report to whose package is installed: what `report_to="all"` means."""
    names = [name for name, packages in _PACKAGES.items() if any(map(is_installed, packages))]
    return [name for name in names if not (name == "wandb" and is_set("WANDB_DISABLED"))]


def resolve_reporters(report_to: Any) -> list[str]:
    """A list of names for the argument `report_to`; None and "all" are those that are installed, "none" is no place.

    Raises:
        UnsupportedError: a name for which there is no callback here.
    """
    names = ["all"] if report_to is None else [report_to] if isinstance(report_to, str) else list(report_to)
    if names == ["all"]:
        return get_available_reporting_integrations()
    if names == ["none"]:
        return []
    for name in names:
        if name not in REPORTERS:
            hint = nearest(str(name), REPORTERS) or "pass a TrainerCallback of your own in callbacks=[...]"
            raise UnsupportedError(f"report_to={name!r} is not one of {', '.join(REPORTERS)}; {hint}")
    return names


def get_reporting_integration_callbacks(report_to: Any) -> list[type[TrainerCallback]]:
    """Classes of the callbacks that report to places; no place for None.

    Raises:
        UnsupportedError: a name for which there is no callback here.
    """
    classes: dict[str, type[TrainerCallback]] = {
        "tensorboard": TensorBoardCallback,
        "trackio": TrackioCallback,
        "wandb": WandbCallback,
        "csv": CSVCallback,
    }
    return [] if report_to is None else [classes[name] for name in resolve_reporters(report_to)]


def rewrite_logs(d: dict[str, Any]) -> dict[str, Any]:
    """Logs with names in groups: `eval/loss` for `eval_loss`, `test/...` for `test_...`, `train/...` for others."""
    groups = ("eval", "test")
    named = {name: next((g for g in groups if name.startswith(f"{g}_")), None) for name in d}
    return {f"train/{n}" if g is None else f"{g}/{n.removeprefix(f'{g}_')}": d[n] for n, g in named.items()}


def _configuration(args: TrainingArguments, model: Any) -> dict[str, Any]:
    """Arguments of the run, and the model's and its adapter's configurations."""
    config = getattr(model, "config", None)
    config = config if isinstance(config, dict) or config is None else config.to_dict()
    adapter = getattr(model, "peft_config", None)
    return {**({} if adapter is None else {"peft_config": adapter}), **(config or {}), **args.to_dict()}


class TensorBoardCallback(TrainerCallback):
    """Writes logs for TensorBoard into `logging_dir`.

    Args:
        tb_writer: the writer; a new one by default.

    Raises:
        MissingDependencyError: neither tensorboard nor tensorboardX is installed.
    """

    def __init__(self, tb_writer: Any = None) -> None:
        self.tb_writer = tb_writer
        self._writer_class = None if tb_writer is not None else _summary_writer()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """Write the arguments and the model's configuration."""
        if state.is_world_process_zero:
            writer = self._writer(args)
            writer.add_text("args", args.to_json_string())
            config = getattr(kwargs.get("model"), "config", None)
            if config is not None:
                writer.add_text("model_config", config.to_json_string())
        return None

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Decision:
        """Write numbers and texts."""
        if not state.is_world_process_zero:
            return None
        writer = self._writer(args)
        for name, value in rewrite_logs(kwargs["logs"]).items():
            if isinstance(value, (int, float)):
                writer.add_scalar(name, value, state.global_step)
            elif isinstance(value, str):
                writer.add_text(name, value, state.global_step)
            else:
                warn(f"TensorBoard gets no {name}: it is a {type(value).__name__}, and neither a number nor a text")
        writer.flush()
        return None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """Close the file."""
        if self.tb_writer is not None:
            self.tb_writer.close()
            self.tb_writer = None
        return None

    def _writer(self, args: TrainingArguments) -> Any:
        if self.tb_writer is None:
            self._writer_class = self._writer_class or _summary_writer()
            self.tb_writer = self._writer_class(log_dir=args.logging_dir)
        return self.tb_writer


def _summary_writer() -> Any:
    module = "torch.utils.tensorboard" if is_installed("tensorboard") else "tensorboardX"
    message = "report_to='tensorboard' needs tensorboard; install it with: pip install tensorboard"
    return import_optional(module, message).SummaryWriter


class _RunCallback(TrainerCallback):
    """What trackio and wandb have in common: a run that is opened once, and logs with their step."""

    def __init__(self, package: str) -> None:
        self._package = import_optional(package, f"report_to={package!r} needs {package}: pip install {package}")
        self._initialized = False

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **kwargs: Any) -> None:
        """Open the run and send arguments and configurations; may be overridden."""
        self._initialized = True
        if state.is_world_process_zero:
            self._open(args, state)
            self._package.config.update(_configuration(args, model), allow_val_change=True)
            self._prepare(state, model)
            if hasattr(model, "num_parameters"):
                self._package.config["model/num_parameters"] = model.num_parameters()

    def _open(self, args: TrainingArguments, state: TrainerState) -> None:
        """Open the run."""

    def _prepare(self, state: TrainerState, model: Any) -> None:
        """What else a new run needs."""

    def _summarize(self, figures: dict[str, Any]) -> None:
        """Send figures of the whole run."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """Open the run."""
        if not self._initialized:
            self.setup(args, state, **kwargs)
        return None

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Decision:
        """Send logs; those of the whole run go into its summary, where there is one."""
        if not self._initialized:
            self.setup(args, state, kwargs.get("model"))
        if state.is_world_process_zero:
            logs = dict(kwargs["logs"])
            self._summarize({name: logs.pop(name) for name in list(logs) if name in _OF_THE_WHOLE_RUN})
            self._package.log({**rewrite_logs(logs), "train/global_step": state.global_step})
        return None

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any, **kwargs: Any
    ) -> Decision:
        """Send the figures of a prediction."""
        if not self._initialized:
            self.setup(args, state, kwargs.get("model"))
        if state.is_world_process_zero:
            self._package.log(rewrite_logs(metrics))
        return None


class TrackioCallback(_RunCallback):
    """Logs to trackio, on this machine unless TRACKIO_SPACE_ID names a Space of the hub.

    TRACKIO_PROJECT names the project, "huggingface" by default; `run_name` the run.

    Raises:
        MissingDependencyError: trackio is not installed.
    """

    def __init__(self) -> None:
        super().__init__("trackio")

    def _open(self, args: TrainingArguments, state: TrainerState) -> None:
        self._package.init(
            project=os.environ.get("TRACKIO_PROJECT", "huggingface"),
            name=args.run_name,
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            resume="allow",
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Decision:
        """Close the run."""
        if state.is_world_process_zero and self._initialized:
            self._package.finish()
        return None


class WandbCallback(_RunCallback):
    """Logs to Weights & Biases, which sends them to its server.

    WANDB_PROJECT names the project, "huggingface" by default; `run_name` the run; WANDB_WATCH="gradients", "parameters"
    or "all" logs these too. Models are not uploaded: WANDB_LOG_MODEL is not read.

    Raises:
        MissingDependencyError: wandb is not installed.
    """

    def __init__(self) -> None:
        super().__init__("wandb")

    def _open(self, args: TrainingArguments, state: TrainerState) -> None:
        if self._package.run is not None:  # opened by the script
            return
        name = state.trial_name or args.run_name
        options = {} if name is None else {"name": name}
        if state.trial_name is not None:
            options["group"] = args.run_name or str(args.output_dir)
        self._package.init(project=os.environ.get("WANDB_PROJECT", "huggingface"), **options)

    def _prepare(self, state: TrainerState, model: Any) -> None:
        self._package.define_metric("train/global_step")
        self._package.define_metric("*", step_metric="train/global_step", step_sync=True)
        watched = os.environ.get("WANDB_WATCH", "false")
        if watched in ("all", "parameters", "gradients"):
            self._package.watch(model, log=watched, log_freq=max(100, state.logging_steps))

    def _summarize(self, figures: dict[str, Any]) -> None:
        for name, value in figures.items():
            self._package.run.summary[name] = value


class CSVCallback(TrainerCallback):
    """Adds a line for each name and value that is logged to `log.csv` in `logging_dir`: step, epoch, name, value."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Decision:
        """Add the lines."""
        if not state.is_world_process_zero:
            return None
        path = Path(args.logging_dir or args.output_dir or ".") / "log.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(("step", "epoch", "name", "value"))
            for name, value in kwargs["logs"].items():
                if name != "epoch":
                    writer.writerow((state.global_step, state.epoch, name, value))
        return None
