"""The pipeline examples of the Transformers documentation, with other names of models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptrio import AutoModelForSequenceClassification, AutoTokenizer, TextClassificationPipeline, pipeline
from gptrio.pipelines import PIPELINE_REGISTRY, Pipeline
from gptrio.pipelines.pt_utils import KeyDataset
from gptrio.pipelines.tasks import TASKS
from gptrio.testing import byte_tokenizer
from tests.contract.families import FAMILIES

NAME = "gptrio/stdlib-gpt2"
LABELS = {"id2label": {0: "contradiction", 1: "entailment"}, "label2id": {"contradiction": 0, "entailment": 1}}


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("classifier")
    FAMILIES[0].build("ForSequenceClassification", **LABELS).save_pretrained(folder)
    byte_tokenizer(model_max_length=64).save_pretrained(folder)
    return str(folder)


def test_text_generation_from_its_docstring() -> None:
    generator = pipeline(model=NAME)
    text = generator("I can't believe you did such a ", do_sample=False, max_new_tokens=8)[0]["generated_text"]
    assert text.startswith("I can't believe you did such a ")
    outputs = generator("My tart needs some", num_return_sequences=4, return_full_text=False, max_new_tokens=8)
    assert [list(output) for output in outputs] == [["generated_text"]] * 4
    generator.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    answer = generator(question, do_sample=False, max_new_tokens=2)[0]["generated_text"]
    assert answer[:1] == question
    assert answer[1]["role"] == "assistant"


def test_streams_and_datasets_from_the_tutorial() -> None:
    def data() -> Iterator[str]:
        for i in range(4):
            yield f"My example {i}"

    pipe = pipeline(model=NAME, device=-1)
    assert len([out[0]["generated_text"] for out in pipe(data(), max_new_tokens=2)]) == 4
    dataset = [{"text": text} for text in data()]
    texts = [out[0]["generated_text"] for out in pipe(KeyDataset(dataset, "text"), batch_size=2, max_new_tokens=2)]
    assert [text[:12] for text in texts] == list(data())


def test_precision_by_model_kwargs() -> None:
    pipe = pipeline(model=NAME, model_kwargs={"dtype": torch.bfloat16}, device_map="cpu")
    assert pipe.model.dtype is torch.bfloat16
    assert pipe("import os", max_new_tokens=2)[0]["generated_text"].startswith("import os")


def test_classifiers_from_their_docstrings(classifier_folder: str) -> None:
    classifier = pipeline(model=classifier_folder)
    assert list(classifier("This movie is disgustingly good !")[0]) == ["label", "score"]
    oracle = pipeline("zero-shot-classification", model=classifier_folder)
    result = oracle("I have a problem with my iphone", candidate_labels=["urgent", "not urgent", "phone"])
    assert sorted(result["labels"]) == ["not urgent", "phone", "urgent"]
    assert sum(result["scores"]) == pytest.approx(1)


def test_a_subclass_with_other_scores(classifier_folder: str) -> None:
    class MyPipeline(TextClassificationPipeline):
        def postprocess(self, *args: Any, **kwargs: Any) -> Any:
            label = super().postprocess(*args, **kwargs)
            return {**label, "score": label["score"] * 100}

    model = AutoModelForSequenceClassification.from_pretrained(classifier_folder)
    tokenizer = AutoTokenizer.from_pretrained(classifier_folder)
    plain = pipeline(model=classifier_folder)("good")[0]["score"]
    by_class = MyPipeline(model=model, tokenizer=tokenizer)
    for my_pipeline in (by_class, pipeline(model=classifier_folder, pipeline_class=MyPipeline)):
        assert my_pipeline("good")[0]["score"] == pytest.approx(100 * plain)


class PairClassificationPipeline(Pipeline):
    """The example of the page on new pipelines."""

    def _sanitize_parameters(self, **kwargs: Any) -> Any:
        preprocess_kwargs = {}
        if "second_text" in kwargs:
            preprocess_kwargs["second_text"] = kwargs["second_text"]
        return preprocess_kwargs, {}, {}

    def preprocess(self, text: str, second_text: str | None = None) -> Any:
        return self.tokenizer(text, text_pair=second_text, return_tensors=self.framework)

    def _forward(self, model_inputs: Any) -> Any:
        return self.model(**model_inputs)

    def postprocess(self, model_outputs: Any) -> Any:
        logits = model_outputs.logits[0].numpy()
        probabilities = np.exp(logits) / np.exp(logits).sum()
        best = int(np.argmax(probabilities))
        return {"label": self.model.config.id2label[best], "score": probabilities[best].item()}


def test_a_new_pipeline_is_registered_and_saved(classifier_folder: str, tmp_path: Path) -> None:
    PIPELINE_REGISTRY.register_pipeline(
        "pair-classification", pipeline_class=PairClassificationPipeline, pt_model=AutoModelForSequenceClassification
    )
    try:
        classifier = pipeline("pair-classification", model=classifier_folder)
        expected = classifier("I like you", second_text="I love you")
        classifier.save_pretrained(tmp_path)
        again = pipeline("pair-classification", model=tmp_path)
        assert again("I like you", second_text="I love you") == expected
    finally:
        del TASKS["pair-classification"]
