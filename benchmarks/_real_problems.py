"""The problems of `real_data.py`: from which rows they are learned, at which settings, and how they are scored."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, ClassVar

import torch

import gptrio
from _real_data import FromTexts, Problem
from gptrio.training.files import Example, read_examples
from gptrio.training.tasks import QuestionAnswering, Row, TextClassification, TokenClassification


class Spam(FromTexts):
    """Text messages, of which 13 % are spam; every tenth is held out. The best of four evaluations is kept."""

    model_class = "GPT2ForSequenceClassification"
    collator = "DataCollatorWithPadding"
    kind = TextClassification
    settings: ClassVar[dict[str, Any]] = {
        "learning_rate": 3e-4,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "eval_strategy": "steps",
        "eval_steps": 0.25,
        "save_strategy": "steps",
        "save_steps": 0.25,
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
    }

    def examples(self, data: Path) -> tuple[list[Example], list[Example]]:
        """Nine of ten messages, and the tenth."""
        rows = read_examples(data / "classification" / "sms_spam.tsv", {"label": "1", "text": "2"})
        return [row for i, row in enumerate(rows) if i % 10 != 9], rows[9::10]

    def callbacks(self) -> list[Any]:
        """Stops after two evaluations that are no better."""
        return [self.library.EarlyStoppingCallback(early_stopping_patience=2)]


class Intents(FromTexts):
    """Questions to a bank, of 77 intents."""

    model_class = "GPT2ForSequenceClassification"
    collator = "DataCollatorWithPadding"
    kind = TextClassification
    settings: ClassVar[dict[str, Any]] = {
        "learning_rate": 3e-4,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 32,
    }

    def examples(self, data: Path) -> tuple[list[Example], list[Example]]:
        """The two files, each in a random order, as they are sorted by intent."""
        columns = {"text": "text", "label": "category"}
        files = (data / "classification" / f"banking77_{name}.csv" for name in ("train", "test"))
        train, test = (read_examples(file, columns) for file in files)
        for part in (train, test):
            random.Random(0).shuffle(part)
        return train, test


class IntentsByAdapter(Intents):
    """The same by LoRA of rank 16 on every linear layer of the blocks; the head is trained as a whole."""

    lora = 16
    settings: ClassVar[dict[str, Any]] = {**Intents.settings, "learning_rate": 2e-3}

    def figures(self, trainer: Any, folder: Path) -> dict[str, float]:
        """Also the largest differences of logits: merged, and of the saved adapter over Transformers' model."""
        found = super().figures(trainer, folder)
        if self.library is not gptrio:
            return found
        import transformers
        from peft import PeftModel

        trainer.save_model(str(folder / "adapter"))
        base = getattr(transformers, self.model_class).from_pretrained(folder / "start")
        theirs = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
        batch = trainer.data_collator(self.test_rows[:64])
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            logits, others = (model(**inputs).logits for model in (trainer.model.eval(), theirs))
            merged = trainer.model.merge_and_unload()(**inputs).logits
        differences = {"merged": merged, "over_transformers": others}
        return found | {name: float((value - logits).abs().max()) for name, value in differences.items()}


class Entities(FromTexts):
    """Words of messages that name people, places, products, ...; evaluated on the development set."""

    model_class = "GPT2ForTokenClassification"
    collator = "DataCollatorForTokenClassification"
    kind = TokenClassification
    settings: ClassVar[dict[str, Any]] = {
        "learning_rate": 3e-4,
        "num_train_epochs": 5,
        "per_device_train_batch_size": 16,
    }

    def examples(self, data: Path) -> tuple[list[Example], list[Example]]:
        """Sentences of the files for training and for development."""
        columns = {name: name for name in TokenClassification.columns}
        train, test = (read_examples(data / "ner" / f"wnut17_{name}.conll", columns) for name in ("train", "dev"))
        return train, test


class Questions(FromTexts):
    """The first 100 questions of XQuAD, and 10 about other texts, which have no answer; all are to be learned by heart.

    Attributes:
        language: of the file.
    """

    model_class = "GPT2ForQuestionAnswering"
    collator = "DataCollatorWithPadding"
    kind = QuestionAnswering
    length = 384
    language: ClassVar[str] = "en"
    settings: ClassVar[dict[str, Any]] = {
        "learning_rate": 8e-4,
        "num_train_epochs": 15,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
    }

    def examples(self, data: Path) -> tuple[list[Example], list[Example]]:
        """The same examples twice."""
        columns = {name: name for name in QuestionAnswering.columns}
        found = read_examples(data / "qa" / f"xquad_{self.language}.json", columns)
        without = {"text": [], "answer_start": []}
        others = [{**found[i], "context": found[-i - 1]["context"], "answers": without} for i in range(0, 100, 10)]
        chosen = [example for i in range(10) for example in (*found[10 * i : 10 * i + 10], others[i])]
        return chosen, chosen

    def figures(self, trainer: Any, folder: Path) -> dict[str, float]:
        """The share of exact answers of all questions, and of those without an answer."""
        found = super().figures(trainer, folder)
        without = [example for example in self.train_examples if not example["answers"]["text"]]
        if not without:  # among the first rows
            return found
        trainer.compute_metrics = None
        scores = self.task.metrics(without)(trainer.predict(self.task.rows(without)))
        return found | {"without_answer": scores["exact_match"]}


class ChineseQuestions(Questions):
    """The same in Chinese, where a token may be a part of a character."""

    length = 512
    language = "zh"


class Characters(Problem):
    """Shakespeare, character by character: nanoGPT's setting for a CPU, from random weights.

    Rows have one token more than the block, so that every token of a block predicts the next one. The loss is that over
    the whole of the last tenth of the text.
    """

    model_class = "GPT2LMHeadModel"
    collator = "default_data_collator"
    block: ClassVar[int] = 64
    updates: ClassVar[int] = 2000
    settings: ClassVar[dict[str, Any]] = {
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1e-4},
        "warmup_steps": 100,
        "warmup_ratio": 0.0,
        "weight_decay": 0.1,
        "adam_beta2": 0.99,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 12,
        "group_by_length": False,
    }

    def read(self, data: Path, rows: int | None) -> tuple[list[Row], list[Row]]:
        """Blocks at random places of nine tenths, and those one after another of the last tenth."""
        text = (data / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
        self.alphabet = sorted(set(text))
        numbers = {character: number for number, character in enumerate(self.alphabet)}
        ids = [numbers[character] for character in text]
        cut, width, rng = int(0.9 * len(ids)), self.block + 1, random.Random(0)
        count = self.updates * self.settings["per_device_train_batch_size"] if rows is None else rows
        train = [rng.randrange(cut - width + 1) for _ in range(count)]
        test = range(cut, len(ids) - width + 1, self.block)[:rows]
        train_rows, test_rows = ([ids[start : start + width] for start in part] for part in (train, test))
        return _labelled(train_rows), _labelled(test_rows)

    def draw(self) -> Any:
        """A model of 4 layers of 128 units."""
        config = gptrio.GPT2Config(
            vocab_size=len(self.alphabet), n_positions=self.block + 1, n_layer=4, n_head=4, n_embd=128, embd_pdrop=0.0,
            resid_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        return gptrio.GPT2LMHeadModel(config)


class CharactersInBfloat16(Characters):
    """The same, computed in bfloat16."""

    settings: ClassVar[dict[str, Any]] = {**Characters.settings, "bf16": True}


def _labelled(rows: list[list[int]]) -> list[Row]:
    return [{"input_ids": row, "labels": row} for row in rows]


PROBLEMS: dict[str, type[Problem]] = {
    "spam": Spam,
    "intents": Intents,
    "intents-lora": IntentsByAdapter,
    "entities": Entities,
    "questions-en": Questions,
    "questions-zh": ChineseQuestions,
    "characters": Characters,
    "characters-bf16": CharactersInBfloat16,
}
