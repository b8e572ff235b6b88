"""What the problems of `real_data.py` share: rows, the model to start from, and a Trainer, of either library.

Every problem is put to either library by the same lines: only the module that the names are taken from differs. Rows
are made by that library's own tokenizer, and both start from the same weights, which gptrio draws and saves.
"""

from __future__ import annotations

import importlib
import warnings
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch.utils.data import SequentialSampler

import gptrio
from gptrio.training.files import Example
from gptrio.training.order import EpochSampler, length_grouped_order, lengths_of
from gptrio.training.tasks import Row, Task

MODEL = Path(gptrio.__file__).parent / "assets" / "stdlib-gpt2"
SETTINGS: dict[str, Any] = {
    "seed": 0,
    "per_device_eval_batch_size": 64,
    "group_by_length": True,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.05,
    "weight_decay": 0.01,
    "logging_steps": 5,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


SHOWN = ("loss", "accuracy", "f1", "exact_match")


class Problem(ABC):
    """What a library's Trainer is to learn.

    Args:
        data: folder of the reference data.
        library: "gptrio" or "transformers".
        rows: how many examples to train on, and to evaluate on; all by default.
        changes: of the arguments.

    Attributes:
        model_class: of the model.
        collator: of the batches.
        settings: arguments of the run, beside `SETTINGS`.
        lora: rank of an adapter that is trained instead of the weights.
        train_rows, test_rows: what it trains on and what it is evaluated on.
    """

    model_class: ClassVar[str]
    collator: ClassVar[str]
    settings: ClassVar[dict[str, Any]]
    lora: ClassVar[int | None] = None

    def __init__(
        self, data: Path, library: str = "gptrio", rows: int | None = None, changes: dict[str, Any] | None = None
    ) -> None:
        self.library: Any = importlib.import_module(library)
        self.arguments = {**SETTINGS, **self.settings, **(changes or {})}
        self.tokenizer: Any = None
        self.train_rows, self.test_rows = self.read(data, rows)

    @abstractmethod
    def read(self, data: Path, rows: int | None) -> tuple[list[Row], list[Row]]:
        """Rows to train on and to evaluate on."""

    @abstractmethod
    def draw(self) -> Any:
        """The model to start from, of gptrio, with the weights of its head drawn at random."""

    def model(self, folder: Path) -> Any:
        """The model to start from, of the library, with an adapter if there is to be one."""
        start = folder / "start"
        if not start.exists():
            gptrio.set_seed(0)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", r".* drawn at random", gptrio.errors.GptrioWarning)
                self.draw().save_pretrained(start)
        model = getattr(self.library, self.model_class).from_pretrained(start)
        if self.lora is None:
            return model
        from peft import LoraConfig, get_peft_model

        gptrio.enable_peft()
        self.library.set_seed(0)
        config = LoraConfig(
            r=self.lora, lora_alpha=2 * self.lora, target_modules=["c_attn", "c_proj", "c_fc"], task_type="SEQ_CLS",
            fan_in_fan_out=True,
        )  # fmt: skip
        return get_peft_model(model, config)

    def trainer(self, folder: Path) -> Any:
        """The library's Trainer, ready to train."""
        library, collate = self.library, getattr(self.library, self.collator)
        trainer = (library.Trainer if library is gptrio else _reference_trainer())(
            model=self.model(folder),
            args=library.TrainingArguments(output_dir=str(folder / "run"), **self.arguments),
            data_collator=collate if self.tokenizer is None else collate(self.tokenizer),
            train_dataset=self.train_rows,
            eval_dataset=self.test_rows,
            processing_class=self.tokenizer,
            compute_metrics=self.metrics(),
            callbacks=self.callbacks(),
        )
        trainer.remove_callback(library.PrinterCallback)
        return trainer

    def metrics(self) -> Any:
        """What an evaluation computes beside the loss."""
        return None

    def callbacks(self) -> list[Any]:
        """Callbacks of the run."""
        return []

    def figures(self, trainer: Any, folder: Path) -> dict[str, float]:
        """The figures of a trained model."""
        found = trainer.evaluate()
        return {name: found[f"eval_{name}"] for name in SHOWN if f"eval_{name}" in found}


class FromTexts(Problem):
    """A problem of the packaged model, whose examples are texts with labels.

    Attributes:
        kind: makes rows of examples.
        length: most tokens of a row.
    """

    kind: ClassVar[type[Task]]
    length: ClassVar[int] = 512

    @abstractmethod
    def examples(self, data: Path) -> tuple[list[Example], list[Example]]:
        """Examples to train on and to evaluate on."""

    def read(self, data: Path, rows: int | None) -> tuple[list[Row], list[Row]]:
        """Rows of the first examples."""
        train, test = self.examples(data)
        self.tokenizer = self.library.AutoTokenizer.from_pretrained(str(MODEL), add_prefix_space=True)
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.task = self.kind(self.tokenizer, self.length, self.kind.label_names(train))
        self.train_examples, self.test_examples = train[:rows], test[:rows]
        return self.task.rows(self.train_examples), self.task.rows(self.test_examples)

    def draw(self) -> Any:
        """The packaged model with a new head."""
        config = gptrio.AutoConfig.from_pretrained(MODEL)
        if self.task.labels:
            config.id2label = dict(enumerate(self.task.labels))
            config.label2id = {name: number for number, name in config.id2label.items()}
        config.pad_token_id = self.tokenizer.pad_token_id
        config.classifier_dropout = 0.0  # the rest of the model has none, so that both libraries compute the same
        return getattr(gptrio, self.model_class).from_pretrained(MODEL, config=config, dtype="float32")

    def metrics(self) -> Any:
        """The metrics of the task."""
        return self.task.metrics(self.test_examples)


def _reference_trainer() -> Any:
    """Transformers' Trainer with gptrio's order of the rows.

    Transformers draws groups of similar length from the global generator, in evaluations too, whose predictions are
    then in another order than the rows.
    """
    import transformers

    class Ordered(transformers.Trainer):
        """Takes gptrio's order of the rows."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            if not self.args.group_by_length:
                return super()._get_train_sampler(train_dataset)
            lengths = lengths_of(self.train_dataset, self.args.length_column_name)
            order = partial(length_grouped_order, lengths, self.args.train_batch_size)
            return EpochSampler(len(lengths), order, self.args.seed)

        def _get_eval_sampler(self, eval_dataset: Any) -> Any:
            return SequentialSampler(eval_dataset)

    return Ordered
