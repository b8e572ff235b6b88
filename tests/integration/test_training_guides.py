"""The two guides that the pages of these models link, with the import changed, on local data and without a network."""

from __future__ import annotations

import json
import math
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptrio.errors import GptrioWarning

datasets = pytest.importorskip("datasets")
CHECKPOINT = "gptrio/stdlib-gpt2"
pytestmark = pytest.mark.filterwarnings("ignore:the model's configuration takes over from the tokenizer")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a guide."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def reviews(folder: Path) -> Any:
    """A data set with the columns of IMDb."""
    words = {0: ("dull", "weak", "poor"), 1: ("fine", "great", "rich")}
    rows = [{"text": f"a {words[n % 2][n % 3]} film, {'really ' * (n % 5)}so", "label": n % 2} for n in range(48)]
    for name, part in (("train", rows[:32]), ("test", rows[32:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    return datasets.load_dataset("json", data_files=files, cache_dir=str(folder / "cache"))


class Accuracy:
    """What `evaluate.load("accuracy")` gives."""

    def compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float((np.asarray(predictions) == np.asarray(references)).mean())}


def test_text_classification(folder: Path) -> None:
    imdb = reviews(folder)
    evaluate = types.SimpleNamespace(load=lambda name: Accuracy())

    from gptrio import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    tokenizer.pad_token = tokenizer.eos_token

    def preprocess_function(examples):
        return tokenizer(examples["text"], truncation=True)

    tokenized_imdb = imdb.map(preprocess_function, batched=True)

    from gptrio import DataCollatorWithPadding

    data_collator = DataCollatorWithPadding(tokenizer=tokenizer)
    accuracy = evaluate.load("accuracy")

    def compute_metrics(eval_pred):
        predictions, labels = eval_pred
        predictions = np.argmax(predictions, axis=1)
        return accuracy.compute(predictions=predictions, references=labels)

    id2label = {0: "NEGATIVE", 1: "POSITIVE"}
    label2id = {"NEGATIVE": 0, "POSITIVE": 1}

    from gptrio import AutoModelForSequenceClassification, Trainer, TrainingArguments

    with pytest.warns(GptrioWarning, match=r"drawn at random.* score.weight; train the model"):
        model = AutoModelForSequenceClassification.from_pretrained(
            CHECKPOINT, num_labels=2, id2label=id2label, label2id=label2id
        )
    training_args = TrainingArguments(
        output_dir="my_awesome_model",
        learning_rate=2e-4,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        num_train_epochs=4,
        weight_decay=0.01,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=tokenized_imdb["train"],
        eval_dataset=tokenized_imdb["test"],
        processing_class=tokenizer,
        data_collator=data_collator,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert len(evaluations) == 4 and evaluations[-1]["eval_accuracy"] >= 0.9
    assert trainer.state.best_model_checkpoint is not None and (folder / trainer.state.best_model_checkpoint).is_dir()
    trainer.save_model("my_awesome_model/final")

    from gptrio import pipeline

    classifier = pipeline("sentiment-analysis", model="my_awesome_model/final")
    assert classifier("a great film, so")[0]["label"] == "POSITIVE"


def test_causal_language_modeling(folder: Path) -> None:
    from gptrio import AutoTokenizer

    texts = [f"def add_{n}(a, b):\n    return a + b + {n}\n" * 3 for n in range(40)]
    eli5 = datasets.Dataset.from_dict({"text": texts}).train_test_split(test_size=0.2)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)

    def preprocess_function(examples):
        return tokenizer(examples["text"], verbose=False)

    tokenized_eli5 = eli5.map(
        preprocess_function, batched=True, num_proc=None, remove_columns=eli5["train"].column_names
    )
    block_size = 64

    def group_texts(examples):
        concatenated_examples = {k: [x for row in examples[k] for x in row] for k in examples}
        total_length = len(concatenated_examples[next(iter(examples.keys()))])
        if total_length >= block_size:
            total_length = (total_length // block_size) * block_size
        result = {
            k: [t[i : i + block_size] for i in range(0, total_length, block_size)]
            for k, t in concatenated_examples.items()
        }
        result["labels"] = result["input_ids"].copy()
        return result

    lm_dataset = tokenized_eli5.map(group_texts, batched=True)

    from gptrio import DataCollatorForLanguageModeling

    tokenizer.pad_token = tokenizer.eos_token
    data_collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False)

    from gptrio import AutoModelForCausalLM, Trainer, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT).float()
    training_args = TrainingArguments(
        output_dir="my_awesome_eli5_clm-model",
        eval_strategy="epoch",
        learning_rate=2e-4,
        weight_decay=0.01,
        num_train_epochs=1,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=lm_dataset["train"],
        eval_dataset=lm_dataset["test"],
        data_collator=data_collator,
        processing_class=tokenizer,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    eval_results = trainer.evaluate()
    assert math.exp(eval_results["eval_loss"]) < 0.8 * math.exp(before)
