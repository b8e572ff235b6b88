"""`pipeline`: which task, which model, which tokenizer, and what it says when they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import gptrio
from gptrio import pipeline
from gptrio.errors import InputError, OptionError, UnsupportedError
from gptrio.pipelines.tasks import TASKS
from gptrio.testing import byte_tokenizer
from tests.contract.families import FAMILIES, Family

NAME = "gptrio/stdlib-gpt2"
HEADS = {
    "text-generation": "lm",
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "feature-extraction": "base",
}


def save(folder: Path, family: Family, name: str) -> Path:
    family.build(name).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("task", HEADS)
def test_the_task_is_inferred_from_the_architecture(tmp_path: Path, family: Family, task: str) -> None:
    folder = save(tmp_path, family, HEADS[task])
    for model in (folder, str(folder)):
        assert type(pipeline(model=model, device="cpu")) is TASKS[task].pipeline_class()
    built = pipeline(model=family.build(HEADS[task]), tokenizer=byte_tokenizer(), device="cpu")
    assert built.task == task


@pytest.mark.parametrize(
    ("task", "head"),
    [
        ("sentiment-analysis", "ForSequenceClassification"),
        ("text-classification", "ForSequenceClassification"),
        ("ner", "ForTokenClassification"),
    ],
)
def test_a_pipeline_keeps_the_name_of_its_task_that_was_asked_for(task: str, head: str) -> None:
    assert pipeline(task, FAMILIES[0].build(head), tokenizer=byte_tokenizer(), device="cpu").task == task


@pytest.mark.parametrize("task", ["text-generation", "ner", "question-answering"])
def test_the_folder_of_a_classifier_is_refused_for_another_task(tmp_path: Path, task: str) -> None:
    folder = save(tmp_path, FAMILIES[0], "ForSequenceClassification")
    with pytest.raises(InputError, match="made for task='text-classification'"):
        pipeline(task, folder)
    with pytest.raises(InputError, match="GPT2ForSequenceClassification"):
        pipeline(task, FAMILIES[0].build("ForSequenceClassification"), tokenizer=byte_tokenizer())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, OptionError, "needs a task"),
        ({"task": "text-generate"}, KeyError, "did you mean 'text-generation'"),
        ({"task": "text-classification"}, OptionError, "no default model"),
        ({"task": "text-generation", "tokenizer": NAME}, OptionError, "without a model"),
        ({"model": NAME, "framework": "tf"}, UnsupportedError, "framework='tf'"),
        ({"model": NAME, "dtype": "float32", "model_kwargs": {"dtype": "float16"}}, OptionError, "model_kwargs"),
        ({"model": NAME, "device_map": "cpu", "model_kwargs": {"device_map": "cpu"}}, OptionError, "given twice"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        pipeline(**arguments)


def test_a_model_without_a_name_needs_a_tokenizer() -> None:
    with pytest.raises(OptionError, match="pass tokenizer"):
        pipeline("text-generation", FAMILIES[0].build())


@pytest.mark.parametrize("arguments", [{"dtype": "bfloat16"}, {"torch_dtype": torch.bfloat16}], ids=str)
def test_the_weights_have_the_dtype_that_is_asked_for(arguments: dict[str, Any]) -> None:
    assert pipeline("text-generation", NAME, device="cpu", **arguments).dtype is torch.bfloat16


def test_tokenizers_are_found_by_name_and_arguments(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "tokens")
    model = save(tmp_path / "model", FAMILIES[0], "lm")
    slow = pipeline("text-generation", model, use_fast=False, device="cpu").tokenizer
    assert type(slow) is gptrio.GPT2Tokenizer
    given = (str(tmp_path / "tokens"), {"model_max_length": 9})
    assert pipeline("text-generation", model, tokenizer=given, device="cpu").tokenizer.model_max_length == 9


@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # of GPT-2's transposed weights
def test_an_adapter_is_loaded_with_its_base_and_the_tokenizer_of_that(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = save(tmp_path / "base", FAMILIES[2], "lm")
    model = gptrio.AutoModelForCausalLM.from_pretrained(base)
    model.add_adapter(peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["dense"]))
    model.save_pretrained(tmp_path / "adapter")
    options: dict[str, Any] = {"device": "cpu", "do_sample": False, "max_new_tokens": 5}
    text = pipeline(model=tmp_path / "adapter", **options)("abc")
    assert text == pipeline(model=model, tokenizer=byte_tokenizer(), **options)("abc")
    assert text != pipeline(model=base, **options)("abc")


def test_a_saved_pipeline_gives_the_same_results(tmp_path: Path) -> None:
    first = pipeline("text-generation", NAME, device="cpu", do_sample=False, max_new_tokens=4)
    first.save_pretrained(tmp_path)
    second = pipeline("text-generation", tmp_path, device="cpu", do_sample=False, max_new_tokens=4)
    assert first("import os") == second("import os")
