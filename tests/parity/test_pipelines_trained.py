"""All six tasks with models trained for a second on excerpts of real sets, value by value beside Transformers'."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import gptrio
from gptrio.pipelines.pt_utils import KeyDataset
from tests.cases import first
from tests.parity.pipelines import assert_alike
from tests.parity.trained_heads import models, padded, tokenizers

EXCERPTS = json.loads(Path(__file__).with_name("excerpts.json").read_text(encoding="utf-8"))
SMS: list[tuple[str, str]] = [(label, text) for label, texts in EXCERPTS["sms"].items() for text in texts]
MESSAGES = [text for _, text in SMS]
WORDS = [sentence["words"] for sentence in EXCERPTS["entities"]]
QUESTIONS = [{key: item[key] for key in ("question", "context")} for item in EXCERPTS["questions"]]
VERSE = EXCERPTS["verse"]
PROMPTS = ["First Citizen:\nBefore", "All:\n", "You are all resolved", "Speak,"]
TOPICS = {"ham": "private", "spam": "advertising"}
STEPS = 30

Trainer = Callable[[str, Any], tuple[Any, Any]]

# what Transformers warns of, and gptrio does not
pytestmark = [
    pytest.mark.filterwarnings("ignore:Tokenizer does not support real words:UserWarning"),
    pytest.mark.filterwarnings("ignore:Passing a list of SQuAD examples:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


def names(*labels: str) -> dict[str, Any]:
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def labelled(tokenizer: Any, pairs: list[tuple[tuple[str, ...], int]]) -> Iterator[dict[str, Any]]:
    rows = padded([(tokenizer(*texts)["input_ids"], []) for texts, _ in pairs])
    for _ in range(STEPS):
        yield rows | {"labels": torch.tensor([label for _, label in pairs])}


def classifier(family: str, tokenizer: Any) -> tuple[Any, Any]:
    batches = labelled(tokenizer, [((text,), ["ham", "spam"].index(label)) for label, text in SMS])
    return models(f"{family}ForSequenceClassification", tokenizer, batches, pad_token_id=0, **names("ham", "spam"))


def entailment(family: str, tokenizer: Any) -> tuple[Any, Any]:
    pairs = [
        ((text, f"This is {topic}."), 2 * (TOPICS[key] == topic)) for key, text in SMS for topic in TOPICS.values()
    ]
    labels = names("contradiction", "neutral", "entailment")
    return models(f"{family}ForSequenceClassification", tokenizer, labelled(tokenizer, pairs), pad_token_id=0, **labels)


def tagger(family: str, tokenizer: Any) -> tuple[Any, Any]:
    tags = sorted({tag for sentence in EXCERPTS["entities"] for tag in sentence["tags"]})
    examples = []
    for sentence in EXCERPTS["entities"]:
        encoded = tokenizer(sentence["words"], is_split_into_words=True)
        examples.append((encoded["input_ids"], [tags.index(sentence["tags"][word]) for word in encoded.word_ids()]))
    batches = (padded(examples, "labels") for _ in range(STEPS))
    return models(f"{family}ForTokenClassification", tokenizer, batches, **names(*tags))


def reader(family: str, tokenizer: Any) -> tuple[Any, Any]:
    examples, starts, ends = [], [], []
    for item in EXCERPTS["questions"]:
        encoded = tokenizer(item["question"], item["context"], truncation="only_second", max_length=128)
        last = item["start"] + len(item["answer"]) - 1
        first, last = (encoded.char_to_token(place, sequence_index=1) for place in (item["start"], last))
        if first is not None and last is not None:
            examples.append((encoded["input_ids"], []))
            starts.append(first)
            ends.append(last)
    batch = padded(examples) | {"start_positions": torch.tensor(starts), "end_positions": torch.tensor(ends)}
    return models(f"{family}ForQuestionAnswering", tokenizer, (batch for _ in range(STEPS)))


def writer(family: str, tokenizer: Any) -> tuple[Any, Any]:
    ids = tokenizer(VERSE, return_tensors="pt")["input_ids"][:, : 4 * 96].reshape(4, 96)
    batches = ({"input_ids": ids, "labels": ids} for _ in range(2 * STEPS))
    return models(f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM", tokenizer, batches)


def backbone(family: str, tokenizer: Any) -> tuple[Any, Any]:
    theirs, ours = writer(family, tokenizer)
    return theirs.base_model, ours.base_model


TASKS: dict[str, tuple[Trainer, list[Any], list[dict[str, Any]]]] = {
    "text-classification": (
        classifier,
        MESSAGES,
        [{}, {"top_k": None}, {"function_to_apply": "sigmoid"}, {"truncation": True, "max_length": 9}],
    ),
    "zero-shot-classification": (
        entailment,
        MESSAGES[-5:],
        [
            {"candidate_labels": [*TOPICS.values()], "hypothesis_template": "This is {}."},
            {"candidate_labels": "private, advertising, late", "multi_label": True},
            {"candidate_labels": ["private"]},
        ],
    ),
    "token-classification": (
        tagger,
        [" ".join(words) for words in WORDS],
        [
            {"aggregation_strategy": strategy, "ignore_labels": []}
            for strategy in ("none", "simple", "first", "average", "max")
        ],
    ),
    "question-answering": (
        reader,
        QUESTIONS,
        [
            {"doc_stride": 16},
            {"doc_stride": 16, "top_k": 3, "handle_impossible_answer": True},
            {"doc_stride": 16, "max_seq_len": 110, "align_to_words": False},
        ],
    ),
    "text-generation": (
        writer,
        PROMPTS,
        [
            {"do_sample": False, "max_new_tokens": 16},
            {"do_sample": False, "max_new_tokens": 8, "num_beams": 3, "num_return_sequences": 2},
            {"do_sample": False, "max_new_tokens": 8, "return_full_text": False, "stop_sequence": ":"},
        ],
    ),
    "feature-extraction": (
        backbone,
        [line for line in VERSE.split("\n")[:6] if line],
        [{"return_tensors": True}, {"return_tensors": True, "tokenize_kwargs": {"truncation": True, "max_length": 5}}],
    ),
}


@pytest.fixture(scope="module", params=first(["GPT2", "GPTNeo", "GPTNeoX"]))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=TASKS)
def trained(request: pytest.FixtureRequest, family: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """The task, Transformers' pipeline, and ours, over equal trained models."""
    torch.manual_seed(0)
    task = request.param
    settings = {"model_max_length": 128, "pad_token": "<|endoftext|>"}
    if task == "token-classification":
        settings["add_prefix_space"] = True
    both = tokenizers(family, tmp_path_factory.mktemp("tokenizer"), **settings)
    theirs, ours = TASKS[task][0](family, both[0])
    return (
        task,
        transformers.pipeline(task, theirs, tokenizer=both[0], device="cpu"),
        gptrio.pipeline(task, ours, tokenizer=both[1], device="cpu"),
    )


def check(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, list) and isinstance(theirs[0], torch.Tensor):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    else:
        assert_alike(ours, theirs, 1e-4)


def test_results_are_those_of_the_reference(trained: tuple[Any, ...]) -> None:
    task, theirs, ours = trained
    _, inputs, several = TASKS[task]
    for options in several:
        expected = theirs(inputs, **options)
        check(ours(inputs, **options), expected)
        check(list(ours((item for item in inputs), **options)), expected)
        check(list(ours(KeyDataset([{"x": item} for item in inputs], "x"), batch_size=3, **options)), expected)
        check([ours(inputs[0], **options)], [theirs(inputs[0], **options)])


def test_models_have_learned_what_they_were_shown(trained: tuple[Any, ...]) -> None:
    """So that the test above compares results that mean something."""
    task, _, ours = trained
    inputs, options = TASKS[task][1], TASKS[task][2][0]
    found = ours(inputs, **options)
    if task == "text-classification":
        assert [result["label"] for result in found] == [label for label, _ in SMS]
    elif task == "zero-shot-classification":
        assert [result["labels"][0] for result in found] == [TOPICS[label] for label, _ in SMS[-5:]]
    elif task == "token-classification":
        tags = [tag for sentence in EXCERPTS["entities"] for tag in sentence["tags"] if tag != "O"]
        labels = [token["entity"] for tokens in found for token in tokens if token["entity"].startswith("B-")]
        assert len(labels) >= sum(tag.startswith("B-") for tag in tags)
    elif task == "question-answering":
        hits = [a["answer"].strip() == item["answer"] for a, item in zip(found, EXCERPTS["questions"], strict=True)]
        assert sum(hits) >= len(hits) // 2
    elif task == "text-generation":
        assert found[0][0]["generated_text"] in VERSE
