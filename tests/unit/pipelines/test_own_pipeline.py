"""Pipelines of others: a subclass with four methods gets one row at a time unless it asks for batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptrio import AutoModelForCausalLM, pipeline
from gptrio.errors import InputError, OptionError
from gptrio.pipelines import (
    PIPELINE_REGISTRY,
    ChunkPipeline,
    Pipeline,
    TextClassificationPipeline,
    get_supported_tasks,
)
from gptrio.pipelines.tasks import TASKS
from gptrio.testing import byte_tokenizer
from tests.contract.families import FAMILIES


class Surprise(Pipeline):
    """Counts tokens and keeps the number of rows of each call."""

    rows: list[int]

    def _sanitize_parameters(self, scale: float | None = None, **kwargs: Any) -> Any:
        return {}, {}, {} if scale is None else {"scale": scale}

    def preprocess(self, text: str) -> Any:
        return self.tokenizer(text, return_tensors="pt")

    def _forward(self, inputs: dict[str, Any]) -> Any:
        self.rows = [*getattr(self, "rows", []), len(inputs["input_ids"])]
        mask = inputs["attention_mask"]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return {"logits": self.model(**inputs, position_ids=positions).logits, "mask": mask}

    def postprocess(self, outputs: Any, scale: float = 1.0) -> float:
        return float(outputs["mask"].sum() * scale)


class Words(ChunkPipeline):
    """Counts the tokens of each word, a row each."""

    def _sanitize_parameters(self, **kwargs: Any) -> Any:
        return {}, {}, {}

    def preprocess(self, text: str) -> Iterator[Any]:
        words = text.split()
        for i, word in enumerate(words):
            yield {**self.tokenizer(word, return_tensors="pt"), "is_last": i == len(words) - 1}

    def _forward(self, inputs: dict[str, Any]) -> Any:
        return {"is_last": inputs["is_last"], "mask": inputs["attention_mask"]}

    def postprocess(self, outputs: Any) -> list[int]:
        assert all("is_last" not in output for output in outputs)
        return [int(output["mask"].sum()) for output in outputs]


def build(pipeline_class: Any, **arguments: Any) -> Any:
    model = FAMILIES[0].build()
    tokenizer = byte_tokenizer()
    return pipeline("text-generation", model, tokenizer=tokenizer, pipeline_class=pipeline_class, **arguments)


def test_code_of_others_gets_one_row_at_a_time() -> None:
    own = build(Surprise, device="cpu")
    assert own(["abc", "d", "ef"], scale=2) == [6, 2, 4]
    assert own.rows == [1, 1, 1]
    assert own("abc") == own.predict("abc") == own.transform("abc") == 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_that_are_asked_for_have_neighbours(side: str) -> None:
    own = build(Surprise, device="cpu", batch_size=2, scale=3)
    own.tokenizer.padding_side = side
    assert own(["abc", "d", "ef"]) == [9, 3, 6]
    assert list(own(text for text in ["abc", "d"])) == [9, 3]
    assert own.rows == [2, 1, 2]


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5])
def test_rows_of_one_input_come_back_together(batch_size: int | None) -> None:
    own = build(Words, device="cpu")
    texts = ["a bc d", "efgh", "ij k"]
    assert own(texts, batch_size=batch_size) == [[1, 2, 1], [4], [2, 1]]
    assert own(texts[0]) == [1, 2, 1]


@pytest.mark.parametrize("batch_size", [-1, 2.5, "4"])
def test_what_is_no_number_of_rows_is_named(batch_size: object) -> None:
    with pytest.raises(OptionError, match=rf"batch_size={batch_size!r} is no number of rows; give one from 1 on"):
        list(build(Words, device="cpu")(["a", "b"], batch_size=batch_size))


def test_a_generator_is_not_read_ahead() -> None:
    own = build(Surprise, device="cpu")
    read = []

    def texts() -> Iterator[str]:
        for text in ("a", "bc"):
            read.append(text)
            yield text

    results = own(texts())
    assert next(results) == 1
    assert read == ["a"]


def test_a_registered_task_is_built_by_name(tmp_path: Path) -> None:
    FAMILIES[0].build().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    default = {"pt": (str(tmp_path), "main")}
    PIPELINE_REGISTRY.register_pipeline("surprise", Surprise, pt_model=AutoModelForCausalLM, default=default)
    try:
        assert "surprise" in get_supported_tasks()
        assert PIPELINE_REGISTRY.check_task("surprise")[1]["impl"] is Surprise
        for own in (pipeline("surprise", tmp_path, device="cpu"), pipeline("surprise", device="cpu")):
            assert type(own) is Surprise
            assert own("abc") == 3
    finally:
        del TASKS["surprise"]


@pytest.mark.parametrize("is_hooked", [False, True])
def test_a_classifier_without_a_padding_token_classifies_batches(is_hooked: bool) -> None:
    model = FAMILIES[0].build("ForSequenceClassification", num_labels=3)
    seen: list[int] = []
    if is_hooked:
        model.register_forward_hook(lambda module, inputs, output: seen.append(len(output.logits)))
    classifier = TextClassificationPipeline(model=model, tokenizer=byte_tokenizer(), device="cpu", top_k=None)
    texts = ["a fine film", "no", "why", "a dull film"]
    for found, text in zip(classifier(texts), texts, strict=True):
        alone = {label["label"]: label["score"] for label in classifier(text)[0]}
        assert {label["label"]: label["score"] for label in found} == pytest.approx(alone)
    assert seen == [1] * (8 if is_hooked else 0)


def test_a_text_without_tokens_is_refused_by_classifiers() -> None:
    model = FAMILIES[0].build("ForSequenceClassification")
    classifier = TextClassificationPipeline(model=model, tokenizer=byte_tokenizer(), device="cpu")
    with pytest.raises(ValueError, match="no tokens"):
        classifier(["a", ""])


def test_a_call_without_input_says_so_and_an_input_may_have_a_name() -> None:
    surprise = Surprise(FAMILIES[0].build(), byte_tokenizer(), device="cpu")
    assert surprise(inputs="four") == surprise("four") == 4.0
    with pytest.raises(InputError, match="no input"):
        surprise()


@pytest.mark.parametrize(
    "wrong", ["gpt2", type(FAMILIES[0].build()), FAMILIES[0].build().config], ids=lambda w: type(w).__name__
)
def test_what_is_no_model_is_named(wrong: Any) -> None:
    with pytest.raises(InputError, match="expected a loaded model"):
        Surprise(wrong, byte_tokenizer())
