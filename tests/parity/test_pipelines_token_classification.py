"""Entities and labels of tokens by pipelines, value by value beside Transformers'."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import gptrio
from gptrio.errors import GptrioWarning, InputError, OptionError
from gptrio.pipelines.token_classification import AggregationStrategy
from tests.cases import first
from tests.parity.pipelines import assert_alike
from tests.parity.trained_heads import LABELS, models, tagged, tokenizers
from tests.tiny_tokenizers import write_gpt2

TEXTS = [
    "Anna saw New York today",
    "Clara Smith lives in Rome again. Ben is from San Jose today, isn't he?",
    " Emma van Dyke went to Zürich 😊 today",
    "x",
    "David Jones  likes\nParis<|endoftext|>Ben",
]
LONG = " ".join(TEXTS * 3)
STRATEGIES = ["none", "simple", "first", "average", "max"]

# what Transformers warns of, and gptrio does not
pytestmark = [
    pytest.mark.filterwarnings("ignore:Tokenizer does not support real words:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`grouped_entities` is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`ignore_subwords` is deprecated:UserWarning"),
]


@pytest.fixture(scope="module", params=first(["GPT2", "GPTNeo", "GPTNeoX"]))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pair(family: str, folder: Any, is_trained: bool = False, **settings: Any) -> tuple[Any, Any]:
    """Transformers' pipeline and ours over equal models."""
    both = tokenizers(family, folder, **{"model_max_length": 128, "pad_token": "<|endoftext|>", **settings})
    batches = tagged(both[0], 80) if is_trained else None
    config = {"num_labels": 5, "id2label": LABELS, "label2id": {label: key for key, label in LABELS.items()}}
    theirs, ours = models(f"{family}ForTokenClassification", both[0], batches, **config)
    return (
        transformers.pipeline("ner", theirs, tokenizer=both[0], device="cpu"),
        gptrio.pipeline("ner", ours, tokenizer=both[1], device="cpu"),
    )


@pytest.fixture(scope="module", params=[False, True], ids=["random", "trained"])
def pipelines(request: pytest.FixtureRequest, family: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    return pair(family, tmp_path_factory.mktemp("ner"), request.param)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("options", [{}, {"ignore_labels": []}, {"ignore_labels": ["O", "PER", "B-LOC"]}], ids=str)
def test_every_strategy_gives_the_entities_of_the_reference(pipelines: Any, strategy: str, options: Any) -> None:
    theirs, ours = pipelines
    for inputs in (TEXTS, TEXTS[1], [TEXTS[0]], LONG):
        assert_alike(
            ours(inputs, aggregation_strategy=strategy, **options),
            theirs(inputs, aggregation_strategy=strategy, **options),
        )


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize("stride", [0, 8])
def test_long_texts_in_parts_have_the_entities_of_the_reference(pipelines: Any, strategy: str, stride: int) -> None:
    for pipeline in pipelines:
        pipeline.tokenizer.model_max_length = 24
    theirs, ours = (pipeline([LONG, *TEXTS], aggregation_strategy=strategy, stride=stride) for pipeline in pipelines)
    for pipeline in pipelines:
        pipeline.tokenizer.model_max_length = 128
    assert_alike(ours, theirs)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_give_what_single_calls_give(pipelines: Any, batch_size: int) -> None:
    theirs, ours = pipelines
    alone = [ours(text, aggregation_strategy="simple") for text in TEXTS]
    assert_alike(ours(TEXTS, aggregation_strategy="simple", batch_size=batch_size), alone)
    assert_alike(list(ours((text for text in TEXTS), aggregation_strategy="simple")), alone)
    assert_alike(theirs(TEXTS, aggregation_strategy="simple", batch_size=batch_size), alone)


@pytest.mark.parametrize("pipelines", [True], indirect=True, ids=["trained"])
def test_a_trained_model_finds_names_and_places(pipelines: Any) -> None:
    _, ours = pipelines
    found = ours("Clara Smith went to Rome today", aggregation_strategy="average")
    assert [(entity["entity_group"], entity["word"].strip()) for entity in found] == [
        ("PER", "Clara Smith"),
        ("LOC", "Rome"),
    ]


def test_a_text_without_tokens_has_no_entities(pipelines: Any) -> None:  # Transformers fails
    assert pipelines[1](["", TEXTS[0], ""], ignore_labels=[])[::2] == [[], []]
    assert pipelines[1]("", aggregation_strategy="max") == []


@pytest.mark.parametrize("delimiter", [None, " ", "", "--"])
@pytest.mark.parametrize("strategy", ["none", "simple", "max"])
def test_split_words_count_characters_in_the_joined_text(
    family: str, tmp_path: Any, delimiter: Any, strategy: str
) -> None:
    theirs, ours = pair(family, tmp_path, add_prefix_space=True)
    words = [text.split() for text in TEXTS[:3]]
    options = {
        "is_split_into_words": True,
        "delimiter": delimiter,
        "aggregation_strategy": strategy,
        "ignore_labels": [],
    }
    assert_alike(ours(words, **options), theirs(words, **options))
    assert_alike(ours(words[0], **options), theirs(words[0], **options))


def test_split_words_can_be_a_default_of_the_pipeline(family: str, tmp_path: Any) -> None:
    _, ours = pair(family, tmp_path, add_prefix_space=True)
    always = type(ours)(ours.model, ours.tokenizer, is_split_into_words=True)
    assert_alike(always(["Anna", "sings"]), ours(["Anna", "sings"], is_split_into_words=True))


def test_given_offsets_are_used(pipelines: Any) -> None:
    theirs, ours = pipelines
    count = len(ours(TEXTS[0], ignore_labels=[]))
    offsets = [(i, i + 1) for i in range(count)]
    options = {"ignore_labels": [], "offset_mapping": offsets}
    assert_alike(ours(TEXTS[0], **options), theirs(TEXTS[0], **options))
    both = [offsets, [(0, 1)] * 200]
    first, second = ours(
        [TEXTS[0], TEXTS[1]], ignore_labels=[], offset_mapping=both
    )  # Transformers uses the first twice
    assert [entity["start"] for entity in first] == list(range(count))
    assert {entity["end"] for entity in second} == {1}
    with pytest.raises(InputError, match="offset_mapping is of 2 texts"):
        ours(TEXTS[:3], offset_mapping=both)


@pytest.mark.parametrize(
    "options",
    [{"grouped_entities": True}, {"grouped_entities": True, "ignore_subwords": True}, {"ignore_subwords": True}],
)
def test_older_names_of_strategies_warn_and_work(pipelines: Any, options: Any) -> None:
    theirs, ours = pipelines
    with pytest.warns(GptrioWarning, match="pass aggregation_strategy="):
        result = ours(TEXTS, **options)
    assert_alike(result, theirs(TEXTS, **options))


def test_a_slow_tokenizer_gives_the_same_without_places(tmp_path: Any) -> None:
    folder = write_gpt2(tmp_path)
    both = [library.GPT2Tokenizer.from_pretrained(folder, model_max_length=64) for library in (transformers, gptrio)]
    theirs, ours = models("GPT2ForTokenClassification", both[0], None, num_labels=5, id2label=LABELS)
    reference = transformers.pipeline("ner", theirs, tokenizer=both[0], device="cpu")
    pipeline = gptrio.pipeline("ner", ours, tokenizer=both[1], device="cpu")
    for strategy in ("none", "simple"):
        assert_alike(pipeline(TEXTS, aggregation_strategy=strategy), reference(TEXTS, aggregation_strategy=strategy))
    for arguments in ({"aggregation_strategy": "first"}, {"stride": 2, "aggregation_strategy": "simple"}):
        with pytest.raises(OptionError, match="fast tokenizer"):
            pipeline(TEXTS, **arguments)
        with pytest.raises(ValueError, match="tokenizer"):
            reference(TEXTS, **arguments)
    with pytest.raises(InputError, match="fast tokenizer"):
        pipeline(["a", "b"], is_split_into_words=True)


@pytest.mark.parametrize("arguments", [{"stride": 128}, {"stride": -1}, {"stride": 2, "aggregation_strategy": "none"}])
def test_impossible_strides_are_refused(pipelines: Any, arguments: Any) -> None:
    with pytest.raises(OptionError, match="stride"):
        pipelines[1](TEXTS, **arguments)


def test_what_is_no_text_is_named(pipelines: Any) -> None:
    theirs, ours = pipelines
    for inputs in ([], (), None, 3):
        with pytest.raises(InputError, match="expected a text, or a list of at least one"):
            ours(inputs)
    with pytest.raises(InputError, match="pass is_split_into_words=True for words"):
        ours([["a", "b"]])
    names = "expected one of 'none', 'simple', 'first', 'average', 'max'"
    for wrong, kind in (("most", KeyError), (3, ValueError), ([], ValueError)):
        for pipe, error in ((theirs, (kind, TypeError)), (ours, kind)):
            with pytest.raises(error, match=None if pipe is theirs else names):
                pipe("a", aggregation_strategy=wrong)
    with pytest.raises(OptionError, match="no argument 'strid'"):
        ours("a", strid=3)


def test_a_tokenizer_without_limit_is_cut_where_the_model_ends(tmp_path: Any) -> None:
    _, ours = pair("GPT2", tmp_path, model_max_length=None, pad_token=None)
    assert max(entity["index"] for entity in ours(LONG * 9, ignore_labels=[])) == 127
    ends = [entity["end"] for entity in ours(LONG * 2, ignore_labels=[], stride=8, aggregation_strategy="simple")]
    assert max(ends) == len(LONG * 2)


def test_scores_are_probabilities_and_strategies_have_the_names_of_the_reference(pipelines: Any) -> None:
    from transformers.pipelines.token_classification import AggregationStrategy as Reference

    assert {s.name: s.value for s in AggregationStrategy} == {s.name: s.value for s in Reference}
    result = pipelines[1](TEXTS[0], aggregation_strategy=AggregationStrategy.MAX, ignore_labels=[])
    assert all(0 < entity["score"] <= 1 and isinstance(entity["score"], np.float32) for entity in result)
