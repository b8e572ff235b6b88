"""Classification and features by pipelines, value by value beside Transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gptrio
from gptrio.errors import InputError
from gptrio.pipelines.pt_utils import KeyDataset
from tests.contract.families import FAMILIES, Family
from tests.parity.pipelines import TEXTS, assert_alike, both, families, save

PAIRS = [{"text": text, "text_pair": "yes"} for text in TEXTS]
LABELS = {"num_labels": 3, "id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
NLI = {
    "num_labels": 3,
    "id2label": {0: "contradiction", 1: "neutral", 2: "ENTAILMENT"},
    "label2id": {"contradiction": 0, "neutral": 1, "ENTAILMENT": 2},
}


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def classifiers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = save(tmp_path_factory.mktemp("classifier"), request.param, "ForSequenceClassification", **LABELS)
    return both("text-classification", folder)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"top_k": 1},
        {"top_k": 2},
        {"top_k": None},
        {"function_to_apply": "sigmoid"},
        {"function_to_apply": "none", "top_k": None},
        {"function_to_apply": "softmax"},
        {"truncation": True, "max_length": 3},
    ],
    ids=str,
)
def test_texts_and_pairs_have_the_labels_of_the_reference(
    classifiers: tuple[Any, Any], arguments: dict[str, Any]
) -> None:
    theirs, ours = classifiers
    for inputs in (TEXTS, PAIRS, TEXTS[0], PAIRS[0], [[["one", "two"]]]):
        expected = theirs(inputs, **arguments)
        assert_alike(ours(inputs, **arguments), expected)
        if inputs in (TEXTS, PAIRS):
            assert_alike(list(ours((item for item in inputs), **arguments)), expected)
            column = KeyDataset([{"x": item} for item in inputs], "x")
            assert_alike(list(ours(column, batch_size=4, **arguments)), expected)


def test_all_scores_by_their_older_name_warn_and_keep_the_order_of_labels(classifiers: tuple[Any, Any]) -> None:
    theirs, ours = classifiers
    for flag in (True, False):
        with pytest.warns(UserWarning, match="return_all_scores"):
            expected = theirs(TEXTS, return_all_scores=flag)
        with pytest.warns(UserWarning, match="top_k"):
            assert_alike(ours(TEXTS, return_all_scores=flag), expected)


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification", "single_label_classification"])
def test_the_problem_type_chooses_the_function(tmp_path: Path, problem_type: str) -> None:
    folder = save(tmp_path, FAMILIES[0], "ForSequenceClassification", problem_type=problem_type, **LABELS)
    theirs, ours = both("sentiment-analysis", folder, top_k=None)
    assert_alike(ours(TEXTS), theirs(TEXTS))
    assert_alike(ours(TEXTS[0]), theirs(TEXTS[0]))


@families
def test_batches_with_a_padding_token_are_those_of_the_reference(tmp_path: Path, family: Family) -> None:
    folder = save(tmp_path, family, "ForSequenceClassification", pad_token_id=256, **LABELS)
    theirs, ours = both("text-classification", folder, batch_size=4)
    theirs.tokenizer.pad_token_id = 256
    assert_alike(ours(TEXTS, top_k=None), theirs(TEXTS, top_k=None))
    assert_alike(ours(TEXTS, top_k=None, batch_size=None), theirs(TEXTS, top_k=None))


def test_generators_and_datasets_give_results_in_order(classifiers: tuple[Any, Any]) -> None:
    theirs, ours = classifiers
    dataset = [{"text": text} for text in TEXTS]
    expected = theirs(TEXTS)
    assert_alike(list(ours(text for text in TEXTS)), expected)
    results = ours(KeyDataset(dataset, "text"))
    assert len(results) == len(TEXTS)
    assert_alike(list(results), expected)


@families
@pytest.mark.parametrize(
    "arguments",
    [
        {"candidate_labels": ["fun", "sad", "dull"]},
        {"candidate_labels": "fun, sad ,dull", "multi_label": True},
        {"candidate_labels": ["fun"], "hypothesis_template": "It is {}."},
        {"candidate_labels": ["fun", "sad"], "batch_size": 3},
        {"candidate_labels": ("fun", "sad")},
        {"candidate_labels": np.array(["fun", "sad"])},
    ],
    ids=str,
)
def test_labels_of_the_call_have_the_scores_of_the_reference(
    tmp_path: Path, family: Family, arguments: dict[str, Any]
) -> None:
    folder = save(tmp_path, family, "ForSequenceClassification", pad_token_id=256, **NLI)
    theirs, ours = both("zero-shot-classification", folder)
    theirs.tokenizer.pad_token_id = 256
    assert_alike(ours(TEXTS, **arguments), theirs(TEXTS, **arguments))
    assert_alike(ours(TEXTS[2], **arguments), theirs(TEXTS[2], **arguments))
    assert_alike(ours("a long text " * 6, **arguments), theirs("a long text " * 6, **arguments))


@pytest.mark.parametrize("wrong", [3, ["fun", None]], ids=str)
def test_what_is_no_text_to_classify_is_named(tmp_path: Path, wrong: Any) -> None:
    folder = save(tmp_path, FAMILIES[0], "ForSequenceClassification", pad_token_id=256, **NLI)
    with pytest.raises(InputError, match="expected a text"):
        gptrio.pipeline("zero-shot-classification", folder, device="cpu")(wrong, candidate_labels=["fun", "sad"])


@families
@pytest.mark.parametrize("name", ["base", "lm"])
def test_features_are_those_of_the_reference(tmp_path: Path, family: Family, name: str) -> None:
    folder = save(tmp_path, family, name)
    theirs, ours = both("feature-extraction", folder)
    assert_alike(ours(TEXTS), theirs(TEXTS))
    assert_alike(ours(TEXTS[0]), theirs(TEXTS[0]))
    cut = {"truncation": True, "tokenize_kwargs": {"max_length": 4}}
    assert_alike(ours(TEXTS, **cut), theirs(TEXTS, **cut))
    for one, other in zip(ours(TEXTS, return_tensors=True), theirs(TEXTS, return_tensors=True), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
