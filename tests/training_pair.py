"""One training run twice: through Transformers' Trainer with its model, and through ours with ours."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

import gptrio
from tests.reference import model_pair

SIZES = {
    "GPT2": {"n_layer": 2, "n_embd": 16, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "GPTNeo": {"num_layers": 2, "hidden_size": 16, "attention_types": [[["local", "global"], 1]]},
    "GPTNeoX": {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32},
}
COMMON = {"pad_token_id": 59, "num_labels": 3, "classifier_dropout": 0.0, "use_cache": False, "hidden_dropout": 0.0}
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 3,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "adam_epsilon": 1e-6,  # some gradients are zero in exact arithmetic; with 1e-8 their rounding would move weights
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


def pair_of(class_name: str, **config: Any) -> tuple[Any, Any]:
    """The reference's model and ours, of two layers of 16 units, without dropout, with equal weights."""
    family = next(name for name in ("GPT2", "GPTNeoX", "GPTNeo") if class_name.startswith(name))
    values = {**COMMON, **SIZES[family], **config}
    if class_name == "GPTNeoForQuestionAnswering":
        values["window_size"] = 32  # a query of padding whose window is all padding has no attention, so no set value
    if family == "GPT2":
        del values["hidden_dropout"]  # which GPT-2's head for tokens would prefer
    return model_pair(class_name, **values)


def arguments(library: Any, **changes: Any) -> Any:
    """Arguments for either library, with an output folder of their own."""
    values = {**SETTINGS, **changes}
    values.setdefault("output_dir", tempfile.mkdtemp(prefix="gptrio-training-"))
    return library.TrainingArguments(**values)


def rows_for(class_name: str, rows: int = 18) -> list[dict[str, Any]]:
    """Rows of 4 to 19 tokens with the labels of a task; each row has as many labels that count as any other."""
    data = []
    for length in torch.randint(4, 20, (rows,)).tolist():
        row: dict[str, Any] = {"input_ids": torch.randint(1, 59, (length,)).tolist()}
        if class_name.endswith("SequenceClassification"):
            row["labels"] = int(torch.randint(0, 3, ()))
        elif class_name.endswith("TokenClassification"):
            row["labels"] = [*torch.randint(0, 3, (4,)).tolist(), *[-100] * (length - 4)]
        elif class_name.endswith("QuestionAnswering"):
            row["start_positions"], row["end_positions"] = sorted(torch.randint(0, length, (2,)).tolist())
        else:
            row["labels"] = list(row["input_ids"])
        data.append(row)
    return data


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch, padded on the right."""
    width = max(len(row["input_ids"]) for row in rows)
    batch = {"attention_mask": [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]}
    for name in rows[0]:
        padding = 59 if name == "input_ids" else -100
        values = [row[name] for row in rows]
        is_ragged = isinstance(values[0], list)
        batch[name] = [value + [padding] * (width - len(value)) for value in values] if is_ragged else values
    return {name: torch.tensor(values) for name, values in batch.items()}


def trainers(class_name: str, changes: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any]:
    """The reference's Trainer and ours, of equal models.

    Args:
        class_name: of the model.
        changes: of the arguments.
        options: of both trainers; `train_dataset` by default is `rows_for(class_name)`.
    """
    oracle, ours = pair_of(class_name)
    options = {"train_dataset": rows_for(class_name), "data_collator": collate, **options}
    return (
        transformers.Trainer(oracle, arguments(transformers, **(changes or {})), **options),
        gptrio.Trainer(ours, arguments(gptrio, **(changes or {})), **options),
    )


def assert_same_history(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], limit: float = 1e-5) -> None:
    """Check the keys of every entry, and every value that is no time."""
    assert [sorted(entry) for entry in ours] == [sorted(entry) for entry in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for name, value in other.items():
            is_time = name.endswith(("runtime", "per_second", "preparation_time"))
            rounding = 1.01e-4 if name == "loss" else 0.0  # it is rounded to four digits
            if not is_time:
                assert abs(one[name] - value) <= limit * max(1.0, abs(value)) + rounding, (name, one, other)


def assert_same_weights(ours: Any, oracle: Any, limit: float = 1e-4) -> None:
    """Check every parameter."""
    expected, actual = oracle.state_dict(), ours.state_dict()
    worst = max(
        float((actual[name] - value).abs().max()) for name, value in expected.items() if value.is_floating_point()
    )
    assert worst <= limit, worst


def checkpoints(folder: str) -> list[str]:
    """Names of the checkpoints in a folder, oldest first."""
    return sorted((path.name for path in Path(folder).glob("checkpoint-*")), key=lambda name: int(name[11:]))
