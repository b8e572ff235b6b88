"""A whole run from files: model, tokenizer, rows, collator and arguments, as `gptrio train` puts them together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptrio.errors import GptrioWarning, OptionError, UnknownNameError, name_place, nearest, warn
from gptrio.training import ranks
from gptrio.training.collators import IGNORE
from gptrio.training.files import Example, read_examples
from gptrio.training.tasks import TASKS, LanguageModeling, Row, Task

if TYPE_CHECKING:
    from gptrio.training.arguments import TrainingArguments
    from gptrio.training.trainer import Trainer

_LORA_TASKS = {"lm": "CAUSAL_LM", "classify": "SEQ_CLS", "tokens": "TOKEN_CLS", "qa": "QUESTION_ANS"}
_HEADS = {"tokens": ["classifier"], "qa": ["qa_outputs"]}  # trained as a whole, which PEFT takes care of for "classify"
_LOGS, _SAVES = 100, 4  # entries in the log, and checkpoints, of a whole run: so many at least, if it has the updates


@dataclass(frozen=True)
class Recipe:
    """What is to be trained, on what, and how.

    Attributes:
        model: folder or hub name.
        data: file of the training examples; see `read_examples`.
        out: folder for checkpoints and the trained model.
        task: "lm", "classify", "tokens" or "qa".
        columns: column of the file for each part of an example, where its name is another one.
        evaluation: file of examples to evaluate on, four times in a run or after each epoch; the best model is kept.
        epochs: passes over the data, which may end in the middle of one.
        steps: updates; replaces `epochs`.
        learning_rate: peak of the schedule, a linear warm-up and a cosine to zero. None: 5e-5, or 2e-4 for an adapter.
        batch: rows of a batch.
        accumulate: batches of an update.
        length: most tokens of a row; the model's context if None.
        lora: rank of a LoRA adapter that is trained instead of the model's weights; None trains the model.
        pack: several texts in a row, none of which sees another; of "lm" only.
        bf16: compute in bfloat16 over weights of float32.
        seed: of new weights, dropout and the order of the rows.
    """

    model: str
    data: Path
    out: Path
    task: str = "lm"
    columns: Mapping[str, str] = field(default_factory=dict)
    evaluation: Path | None = None
    epochs: float = 3.0
    steps: int | None = None
    learning_rate: float | None = None
    batch: int = 8
    accumulate: int = 1
    length: int | None = None
    lora: int | None = None
    pack: bool = False
    bf16: bool = False
    seed: int = 42


class Run:
    """A recipe with its model and rows loaded.

    Raises:
        UnknownNameError: there is no such task.
        OptionError: columns or labels do not fit, or an option has no effect.
        CheckpointError: there is no such model.

    Attributes:
        task: which made the rows.
        model: of the task's class, with an adapter around it if one is trained.
        tokenizer: of the model.
        train_rows, eval_rows: of the two files; the second None without one.
        train_examples: how many examples the first file holds.
        eval_examples: of the second file; empty without one.
        processes: that a launcher has started for the run.
    """

    def __init__(self, recipe: Recipe) -> None:
        from gptrio import AutoConfig, AutoTokenizer, set_seed

        self._check(recipe)
        kind = TASKS[recipe.task]
        columns = self._columns(recipe, kind)
        examples = self._read(recipe.data, columns, kind)
        config = AutoConfig.from_pretrained(recipe.model)
        options: dict[str, Any] = {"add_prefix_space": True} if recipe.task == "tokens" else {}
        self.recipe, self.processes = recipe, ranks.launched()[1]
        self.tokenizer = AutoTokenizer.from_pretrained(recipe.model, **options)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # masked wherever a row is padded
        context = config.max_position_embeddings
        self.task = kind(self.tokenizer, self._length(recipe, context), self._labels(kind, examples, config))
        self.train_examples = len(examples)
        self.train_rows = self._rows(examples)
        self.eval_examples = [] if recipe.evaluation is None else self._read(recipe.evaluation, columns, kind)
        self.eval_rows = self._rows(self.eval_examples) if self.eval_examples else None
        if self.eval_rows is not None and recipe.task in ("classify", "tokens"):
            self.eval_rows.sort(key=lambda row: -len(row["input_ids"]))  # batches of little padding, the largest first
        set_seed(recipe.seed)
        self.model = self._model(kind, config)

    @staticmethod
    def _check(recipe: Recipe) -> None:
        """Refuse what no run can be made of before any file is read."""
        if recipe.task not in TASKS:
            hint = nearest(recipe.task, TASKS) or f"choose one of {', '.join(TASKS)}"
            raise UnknownNameError(f"task {recipe.task!r} is unknown; {hint}")
        if recipe.pack and recipe.task != "lm":
            raise OptionError(
                f"pack=True has no effect on task {recipe.task!r}, whose rows have one text each; leave it out"
            )
        for name, value in (("epochs", recipe.epochs), ("learning_rate", recipe.learning_rate or 0)):
            if not math.isfinite(value):
                raise OptionError(f"{name}={value} is not possible; expected a finite number")
        if not 0 <= recipe.seed < 2**32:
            raise OptionError(f"seed={recipe.seed} is not possible; expected 0 to {2**32 - 1}")

    @staticmethod
    def _columns(recipe: Recipe, kind: type[Task]) -> dict[str, str]:
        if unknown := recipe.columns.keys() - set(kind.columns):
            raise OptionError(
                f"an example of task {recipe.task!r} has no {sorted(unknown)[0]!r}, only {', '.join(kind.columns)}"
            )
        return {name: recipe.columns.get(name, name) for name in kind.columns}

    @staticmethod
    def _read(path: Path, columns: dict[str, str], kind: type[Task]) -> list[Example]:
        examples = read_examples(path, columns)
        for example in examples:
            try:
                kind.check(example)
            except OptionError as error:
                name_place(error, example.place)
                raise
        if doubts := [(example.place, doubt) for example in examples if (doubt := kind.doubt(example))]:
            others = f"; so it is with {len(doubts) - 1:,} others" if len(doubts) > 1 else ""
            warn(f"{doubts[0][0]}: {doubts[0][1]}{others}")
        return examples

    @staticmethod
    def _length(recipe: Recipe, context: int) -> int:
        if recipe.length is not None and recipe.length > context:
            raise OptionError(f"length={recipe.length} is more than the model's context of {context} tokens")
        return recipe.length or context

    @staticmethod
    def _labels(kind: type[Task], examples: list[Example], config: Any) -> list[str]:
        """The labels of the data; in the model's order if it has learnt all of them."""
        names = kind.label_names(examples)
        learnt = [config.id2label[number] for number in sorted(config.id2label)]
        labels = learnt if names and set(names) <= set(learnt) else names
        if len(labels) == 1:
            raise OptionError(f"all examples have the label {labels[0]!r}, so that there is nothing to tell apart")
        return labels

    def _rows(self, examples: list[Example]) -> list[Row]:
        if self.recipe.pack and isinstance(self.task, LanguageModeling):
            from gptrio.training.packing import pack

            documents = [{"input_ids": ids} for ids in self.task.documents(examples)]
            rows = pack(documents, self.task.context, pad_token_id=self.tokenizer.pad_token_id)
        else:
            try:
                rows = self.task.rows(examples)
            except OptionError as error:
                if error.index is not None:
                    name_place(error, examples[error.index].place)
                raise
        if not rows:
            raise OptionError("the examples are too short to learn from: no row has two tokens")
        return rows

    def _model(self, kind: type[Task], config: Any) -> Any:
        import gptrio
        from gptrio.training.preparing import align_special_tokens

        labels = dict(enumerate(self.task.labels))
        if labels:
            config.id2label, config.label2id = labels, {name: number for number, name in labels.items()}
        with warnings.catch_warnings():  # of a new head and of padding, which the run is for
            warnings.filterwarnings("ignore", r".* drawn at random, .*: (score|classifier|qa_outputs)\b", GptrioWarning)
            model = getattr(gptrio, kind.model_class).from_pretrained(self.recipe.model, config=config, dtype="float32")
            warnings.filterwarnings("ignore", "the model's configuration takes over", GptrioWarning)
            align_special_tokens(model, self.tokenizer)
        if self.recipe.lora is None:
            return model
        gptrio.enable_peft()
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(
            r=self.recipe.lora,
            lora_alpha=2 * self.recipe.lora,
            target_modules="all-linear",
            exclude_modules=_HEADS.get(self.recipe.task),
            task_type=_LORA_TASKS[self.recipe.task],
            fan_in_fan_out=config.model_type == "gpt2",
        )
        return get_peft_model(model, lora)

    @property
    def tokens(self) -> int:
        """Tokens of all rows to train on, without the padding of packed ones."""
        padding = sum(map(_padding, self.train_rows)) if self.recipe.pack else 0
        return sum(len(row["input_ids"]) for row in self.train_rows) - padding

    @property
    def updates(self) -> int:
        """How many times the optimizer steps."""
        return self.recipe.steps or math.ceil(self.recipe.epochs * self._updates_of_epoch)

    @property
    def _updates_of_epoch(self) -> int:
        batches = math.ceil(math.ceil(len(self.train_rows) / self.recipe.batch) / self.processes)
        return math.ceil(batches / self.recipe.accumulate)

    @property
    def rows(self) -> int:
        """Rows of an update, of all processes; of the first ones of an epoch, where the last one has fewer."""
        return min(self.recipe.batch * self.recipe.accumulate * self.processes, len(self.train_rows))

    @property
    def tokens_of_update(self) -> float:
        """Tokens of an update on average."""
        return self.tokens / self._updates_of_epoch

    @property
    def learning_rate(self) -> float:
        """The peak of the schedule."""
        if self.recipe.learning_rate is not None:
            return self.recipe.learning_rate
        return 5e-5 if self.recipe.lora is None else 2e-4

    def arguments(self) -> TrainingArguments:
        """The arguments of the trainer."""
        from gptrio import TrainingArguments

        recipe, evaluates = self.recipe, self.eval_rows is not None
        interval = max(1, int(self.updates / max(_SAVES, recipe.epochs)))  # the last one is at the end, or just before
        return TrainingArguments(
            output_dir=str(recipe.out),
            num_train_epochs=recipe.epochs,
            max_steps=recipe.steps or -1,
            per_device_train_batch_size=recipe.batch,
            per_device_eval_batch_size=recipe.batch,
            gradient_accumulation_steps=recipe.accumulate,
            group_by_length=recipe.task != "lm",
            learning_rate=self.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=round(0.03 * self.updates),
            weight_decay=0.01,
            logging_steps=max(1, self.updates // _LOGS),
            eval_strategy="steps" if evaluates else "no",
            eval_steps=interval,
            save_strategy="steps",
            save_steps=interval,
            save_total_limit=2,
            load_best_model_at_end=evaluates,
            bf16=recipe.bf16,
            seed=recipe.seed,
            report_to=["csv"],
            disable_tqdm=True,
        )

    def trainer(self, callbacks: list[Any]) -> Trainer:
        """The trainer, with callbacks that show the run in place of its own."""
        from gptrio import PrinterCallback, Trainer

        trainer = Trainer(
            model=self.model,
            args=self.arguments(),
            data_collator=self._collator(),
            train_dataset=self.train_rows,
            eval_dataset=self.eval_rows,
            processing_class=self.tokenizer,
            compute_metrics=self.task.metrics(self.eval_examples) if self.eval_examples else None,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _collator(self) -> Any:
        from gptrio import DataCollatorForTokenClassification, DataCollatorWithPadding, default_data_collator

        if self.recipe.pack:
            return default_data_collator  # rows of one length
        kinds = {"classify": DataCollatorWithPadding, "qa": DataCollatorWithPadding}
        return kinds.get(self.recipe.task, DataCollatorForTokenClassification)(self.tokenizer)


def _padding(row: Row) -> int:
    """How many places at the end of a packed row have no token."""
    return sum(1 for _ in takewhile(lambda label: label == IGNORE, reversed(row["labels"])))
