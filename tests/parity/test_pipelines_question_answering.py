"""Answers by pipelines, value by value beside Transformers'."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers

import gptrio
from gptrio.errors import GptrioWarning, InputError, OptionError, UnsupportedError
from tests.cases import first
from tests.parity.pipelines import assert_alike
from tests.parity.trained_heads import QUESTION, asked, models, story, tokenizers
from tests.tiny_tokenizers import write_gpt2

STORIES = [story(random.Random(i))[0] for i in range(6)]
LONG = " ".join(STORIES * 4)
ITEMS = [{"question": QUESTION, "context": context} for context in [*STORIES, "生活的真谛是 Paris  today\n😊.", "x"]]

# Transformers' alone: examples without a name are as good here, and its way to numpy is an old one
pytestmark = [
    pytest.mark.filterwarnings("ignore:Passing a list of SQuAD examples:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


def pair(family: str, folder: Any, is_trained: bool = False, **settings: Any) -> tuple[Any, Any]:
    """Transformers' pipeline and ours over equal models."""
    both = tokenizers(family, folder, **{"model_max_length": 128, "pad_token": "<|endoftext|>", **settings})
    batches = asked(both[0], 60) if is_trained else None
    theirs, ours = models(f"{family}ForQuestionAnswering", both[0], batches)
    return (
        transformers.pipeline("question-answering", theirs, tokenizer=both[0], device="cpu"),
        gptrio.pipeline("question-answering", ours, tokenizer=both[1], device="cpu"),
    )


@pytest.fixture(scope="module", params=first(["GPT2", "GPTNeo", "GPTNeoX"]))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[False, True], ids=["random", "trained"])
def pipelines(request: pytest.FixtureRequest, family: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    return pair(family, tmp_path_factory.mktemp("qa"), request.param)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 4},
        {"align_to_words": False, "top_k": 3},
        {"align_to_words": False},
        {"handle_impossible_answer": True, "top_k": 3},
        {"max_answer_len": 2, "top_k": 2},
        {"max_question_len": 2},
        {"padding": True},
        {"padding": "max_length", "max_seq_len": 100},
        {"padding": False, "batch_size": 4},
    ],
    ids=str,
)
def test_answers_are_those_of_the_reference(pipelines: Any, options: Any) -> None:
    theirs, ours = pipelines
    assert_alike(ours(ITEMS[:-1], **options), theirs(ITEMS[:-1], **options))
    assert_alike(ours(**ITEMS[0], **options), theirs(**ITEMS[0], **options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_seq_len": 40, "doc_stride": 5, "top_k": 3},
        {"max_seq_len": 60, "max_answer_len": 5},
        {"doc_stride": 30, "handle_impossible_answer": True, "top_k": 2},
    ],
    ids=str,
)
def test_long_contexts_in_parts_have_the_answers_of_the_reference(pipelines: Any, options: Any) -> None:
    theirs, ours = pipelines
    data = [{"question": "city?", "context": context} for context in (LONG, LONG.replace(" ", "  "))]
    assert_alike(ours(data, **options), theirs(data, **options))


@pytest.mark.parametrize("pipelines", [True], indirect=True, ids=["trained"])
def test_a_trained_model_finds_the_answer(pipelines: Any) -> None:
    _, ours = pipelines
    draw = random.Random(5)
    stories = [story(draw) for _ in range(20)]
    answers = ours([{"question": QUESTION, "context": text} for text, _ in stories])
    assert [answer["answer"].strip() for answer in answers] == [place for _, place in stories]
    assert all(text[a["start"] : a["end"]] == a["answer"] for (text, _), a in zip(stories, answers, strict=True))


def test_inputs_of_every_form_give_the_same(pipelines: Any) -> None:
    theirs, ours = pipelines
    expected = [theirs(**item) for item in ITEMS[:3]]
    contexts = [item["context"] for item in ITEMS[:3]]
    examples = [gptrio.SquadExample(None, QUESTION, context) for context in contexts]
    lists = [ITEMS[:3], tuple(ITEMS[:3]), examples, ours.create_sample([QUESTION] * 3, contexts)]
    for inputs in lists:
        assert_alike(ours(inputs), expected)
    assert_alike(ours(*ITEMS[:3]), expected)
    assert_alike(ours(question=[QUESTION] * 3, context=contexts), expected)
    assert_alike(ours(data=ITEMS[:3]), expected)
    assert_alike(ours(X=ITEMS[:3]), expected)
    assert_alike(list(ours(item for item in ITEMS[:3])), expected)
    for one in (ITEMS[0], [ITEMS[0]], examples[0], {**ITEMS[0], "id": 3}):
        assert_alike(ours(one), expected[0])
    assert_alike(ours(QUESTION, contexts[0]), expected[0])
    questions = [QUESTION, "who sings?"]
    assert_alike(ours(question=questions, context=LONG), theirs(question=questions, context=LONG))
    assert_alike(ours([transformers.SquadExample(None, QUESTION, contexts[0], None, None, None)]), expected[0])


def test_options_of_the_pipeline_are_defaults_of_its_calls(pipelines: Any) -> None:
    theirs, ours = pipelines
    twins = [type(p)(model=p.model, tokenizer=p.tokenizer, top_k=2, max_answer_len=4) for p in (ours, theirs)]
    assert_alike(twins[0](ITEMS[:4]), twins[1](ITEMS[:4]))
    assert_alike(twins[0](ITEMS[:4], top_k=3), twins[1](ITEMS[:4], top_k=3))


def test_the_context_comes_first_where_padding_is_on_the_left(family: str, tmp_path: Any) -> None:
    _, ours = pair(family, tmp_path, padding_side="left", pad_token=None)
    for options in ({}, {"top_k": 9}, {"max_seq_len": 40, "doc_stride": 5}):
        found = ours(question=QUESTION, context=LONG, **options)
        for answer in found if isinstance(found, list) else [found]:  # Transformers takes tokens of the question, too
            assert answer["answer"] == LONG[answer["start"] : answer["end"]] != ""


def test_fewer_answers_than_asked_for_are_only_real_ones(pipelines: Any) -> None:
    found = pipelines[1](question=QUESTION, context="Anna sings.", top_k=99, max_answer_len=2)
    assert len(found) < 99 and all(answer["start"] < answer["end"] for answer in found)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "pass question=... and context="),
        ({"question": "a"}, "pass question=... and context="),
        ({"question": "", "context": "b"}, "question is str ''; expected a text"),
        ({"question": "a", "context": None}, "expected two texts"),
        ({"question": ["a", "b"], "context": ["c"]}, "2 questions and 1 contexts"),
        ({"data": 3}, "expected a dict with 'question' and 'context'"),
        ({"data": [{"question": "a"}]}, "context is NoneType None"),
        ({"data": ["a"]}, "or a SquadExample"),
    ],
)
def test_what_is_no_question_is_named(pipelines: Any, inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipelines[1](**inputs)


def test_impossible_options_are_refused(pipelines: Any) -> None:
    _, ours = pipelines
    for options in ({"top_k": 0}, {"max_answer_len": 0}, {"doc_stride": 50, "max_seq_len": 40}):
        with pytest.raises(OptionError, match=f"{next(iter(options))}="):
            ours(**ITEMS[0], **options)
    with pytest.raises(InputError, match="leaves no room for the context in max_seq_len=40"):
        ours(question="city " * 60, context="b", max_seq_len=40)
    with pytest.warns(GptrioWarning, match="no argument 'truncation'"):
        ours(**ITEMS[0], truncation=True)
    with pytest.warns(GptrioWarning, match="pass that"):
        assert len(ours(**ITEMS[0], topk=2)) == 2


def test_a_question_that_leaves_less_room_than_the_overlap_still_works(pipelines: Any) -> None:
    answer = pipelines[1](question="city " * 12, context=LONG, max_seq_len=40, doc_stride=20)
    assert answer["answer"] == LONG[answer["start"] : answer["end"]]


def test_a_slow_tokenizer_is_refused_with_the_way_out(tmp_path: Any) -> None:
    tokenizer = gptrio.GPT2Tokenizer.from_pretrained(write_gpt2(tmp_path))
    _, ours = models("GPT2ForQuestionAnswering", tokenizer, None)
    with pytest.raises(UnsupportedError, match="use_fast=True"):
        gptrio.pipeline("question-answering", ours, tokenizer=tokenizer)(**ITEMS[0])


def test_a_tokenizer_without_limit_is_cut_where_the_model_ends(tmp_path: Any) -> None:
    _, ours = pair("GPT2", tmp_path, model_max_length=None, pad_token=None)
    answer = ours(question=QUESTION, context=LONG * 3)
    assert answer["answer"] == (LONG * 3)[answer["start"] : answer["end"]]


def test_answers_in_half_precision_have_scores(family: str, tmp_path: Any) -> None:
    _, ours = pair(family, tmp_path)
    ours.model.to(torch.bfloat16)
    assert 0 < ours(**ITEMS[0])["score"] < 1
