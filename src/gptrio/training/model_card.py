"""The model card of a trained model: what it was made from, how, and how well it does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gptrio import __version__
from gptrio.hub import write_text

_ARGUMENTS = (
    "learning_rate",
    "train_batch_size",
    "eval_batch_size",
    "seed",
    "gradient_accumulation_steps",
    "optim",
    "lr_scheduler_type",
    "warmup_ratio",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "weight_decay",
    "label_smoothing_factor",
    "bf16",
    "fp16",
)
_NOT_SHOWN = ("epoch", "step", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


def write_model_card(
    trainer: Any, name: str, metadata: dict[str, Any], dataset: Any = None, dataset_args: Any = None
) -> None:
    """Write the card of a trainer's model into its output folder.

    Args:
        trainer: `Trainer`.
        name: heading.
        metadata: entries of the card's head; those that are None or empty are left out.
        dataset: names of the data sets.
        dataset_args: their configurations.
    """
    from huggingface_hub import ModelCard, ModelCardData

    path = Path(trainer.args.output_dir, "README.md")
    old = ModelCard.load(path).data.tags or [] if path.exists() else []
    tags = list(dict.fromkeys([*_list(old), *_list(metadata.get("tags")), "generated_from_trainer"]))
    config = getattr(trainer.model, "config", None)
    base = metadata.get("base_model") or getattr(config, "_name_or_path", None)
    entries = {**metadata, "tags": tags, "base_model": base, "library_name": "transformers", "model_name": name}
    data = ModelCardData(**{key: value for key, value in entries.items() if value})
    text = "\n".join(_body(trainer, name, base, _list(dataset), _list(dataset_args)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def _list(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value or ())


def _body(trainer: Any, name: str, base: Any, datasets: list[str], configurations: list[str]) -> Iterable[str]:
    origin = f"[{base}](https://huggingface.co/{base})" if base else "new weights"
    data = ", ".join(datasets) or "data that is not named"
    yield f"# {name}\n"
    details = f" ({', '.join(configurations)})" if configurations else ""
    yield f"Trained from {origin} on {data}{details}.\n"
    evaluations = [entry for entry in trainer.state.log_history if any(key.startswith("eval_") for key in entry)]
    if evaluations:
        yield "Results on the evaluation set:\n"
        yield from (f"- {key}: {_number(value)}" for key, value in evaluations[-1].items() if key not in _NOT_SHOWN)
        yield ""
    yield "## Training\n"
    values = {key: getattr(trainer.args, key) for key in _ARGUMENTS}
    yield from (
        f"- {key}: {getattr(value, 'value', value)}" for key, value in values.items() if value not in (None, 0, -1)
    )
    yield ""
    yield from _table(trainer.state.log_history, evaluations)
    import torch

    yield f"Made with gptrio {__version__} and torch {torch.__version__}."


def _table(history: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> Iterable[str]:
    """The log, a row for each evaluation, with the training loss that was logged before it."""
    if not evaluations:
        return
    columns = [key for key in evaluations[-1] if key not in _NOT_SHOWN]
    yield f"| training loss | epoch | step | {' | '.join(columns)} |"
    yield f"|{'---|' * (len(columns) + 3)}"
    loss: Any = "-"
    for entry in history:
        loss = entry.get("loss", loss)
        if entry in evaluations:
            cells = [loss, entry.get("epoch", 0), entry["step"], *(entry.get(key, "-") for key in columns)]
            yield f"| {' | '.join(map(_number, cells))} |"
    yield ""


def _number(value: Any) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
