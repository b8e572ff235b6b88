"""A chat session: the tokens of a run without a kept cache, and what happens to messages, options and the context."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from gptrio import InputError, OptionError
from gptrio.generation.answer_streamer import overlap
from gptrio.generation.chat import PLAIN_TEMPLATE, ChatSession, common_length, without_oldest_turn
from gptrio.generation.stopping import FinishReason
from gptrio.testing import byte_tokenizer
from tests.contract.families import FAMILIES

GREEDY = {"do_sample": False, "max_new_tokens": 12}
TEMPLATE = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}"


@pytest.fixture(params=FAMILIES, ids=str)
def model(request):
    torch.manual_seed(0)
    return request.param.build(max_position_embeddings=256)


@pytest.fixture
def tokenizer():
    return byte_tokenizer()


def without_cache(session: ChatSession, messages: list[dict[str, str]]) -> str:
    """The answer to messages by one call of `generate` without a cache."""
    template = PLAIN_TEMPLATE if session.is_plain else None
    ids = session.tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True)
    stop = {"stop_strings": ["\nUser:"], "tokenizer": session.tokenizer} if session.is_plain else {}
    with torch.no_grad():
        output = session.model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), use_cache=False, **GREEDY, **stop
        )
    text = session.tokenizer.decode(output[0, len(ids) :].tolist(), skip_special_tokens=True)
    return text.partition("\nUser:")[0].strip() if session.is_plain else text.strip()


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["plain", "template"])
def test_answers_are_those_without_a_kept_cache(model, tokenizer, template):
    tokenizer.chat_template = template
    session = ChatSession(model, tokenizer, options=GREEDY)
    reused = []
    for text in ("hello", "and now?", "x"):
        messages = [*session.messages, {"role": "user", "content": text}]
        expected = without_cache(session, messages)
        answer = session.answer(text)
        assert answer.text == expected
        assert session.messages == [*messages, {"role": "assistant", "content": expected}]
        reused.append(answer.reused)
    assert reused[0] == 0 and 0 < reused[1] < reused[2]


def test_a_crop_past_a_sliding_window_computes_the_prompt_anew(model, tokenizer):
    session = ChatSession(model, tokenizer, options=GREEDY)
    session.answer("a" * 40)
    session.answer("b" * 120)
    session.messages = session.messages[:1]  # far behind what a window of 8 keeps
    session.messages[0]["content"] = "a" * 20
    expected = without_cache(session, [*session.messages, {"role": "user", "content": "c"}])
    answer = session.answer("c")
    assert answer.text == expected
    assert answer.reused == (0 if model.config.model_type == "gpt_neo" else len("User: ") + 20)


def test_an_interrupted_answer_stays_and_the_next_one_is_right(model, tokenizer):
    session = ChatSession(model, tokenizer, options=GREEDY)
    pieces: list[str] = []
    answer = session.answer("hello", pieces.append, should_stop=lambda: len("".join(pieces)) >= 3)
    assert answer.finish_reason is None and answer.tokens < 12
    assert session.messages[-1] == {"role": "assistant", "content": "".join(pieces).strip()}
    expected = without_cache(session, [*session.messages, {"role": "user", "content": "go on"}])
    assert session.answer("go on").text == expected


def test_a_failure_leaves_the_messages_and_the_next_answer_right(model, tokenizer):
    session = ChatSession(model, tokenizer, options=GREEDY)
    session.answer("hello")

    def fail(piece: str) -> None:
        raise KeyboardInterrupt

    before = session.messages
    with pytest.raises(KeyboardInterrupt):
        session.answer("x", fail)
    assert session.messages == before and session.cached_tokens == 0
    expected = without_cache(session, [*before, {"role": "user", "content": "y"}])
    assert session.answer("y").text == expected


def test_the_oldest_turns_are_dropped_aloud_and_the_system_prompt_is_kept(model, tokenizer):
    said: list[str] = []
    session = ChatSession(model, tokenizer, "be brief", GREEDY, said.append)
    for number in range(6):
        session.answer(f"{number}" * 60)
        assert session.cached_tokens <= session.context
    assert said[0].startswith("the tokenizer has no chat template") and len(said) > 1
    assert all("tokens is full: the oldest turn was dropped" in line for line in said[1:])
    assert session.messages[0]["role"] == "user" and session.messages[0]["content"][0] != "0"
    expected = without_cache(
        session,
        [{"role": "system", "content": "be brief"}, *session.messages[2:], {"role": "user", "content": "z" * 60}],
    )
    assert session.answer("z" * 60).text == expected
    with pytest.raises(InputError, match="the model's context 256; shorten it"):
        session.answer("y" * 300)
    assert len(session.messages) > 1


def test_an_answer_fills_the_context_at_most(model, tokenizer):
    session = ChatSession(model, tokenizer, options={**GREEDY, "max_new_tokens": 100000, "eos_token_id": None})
    session._ids = lambda messages: [1] * 250  # type: ignore[method-assign]  # a prompt of an exact length
    tokenizer.chat_template = TEMPLATE
    answer = session.answer("x")
    assert (answer.tokens, answer.finish_reason) == (6, FinishReason.LENGTH)


def test_a_transcript_goes_on_where_the_chat_was(model, tokenizer):
    first = ChatSession(model, tokenizer, "be brief", GREEDY)
    first.answer("hello")
    second = ChatSession(model, tokenizer)
    second.restore(json.loads(json.dumps(first.transcript())))
    assert second.transcript() == first.transcript()
    assert second.answer("x").text == first.answer("x").text
    second.restore(first.transcript()["messages"])  # as Transformers' chat saves them
    assert second.messages == first.messages
    for wrong in ({}, {"messages": [{"role": "nobody", "content": ""}]}, "text", [{"role": "user"}]):
        with pytest.raises(InputError, match="a transcript is a list of messages"):
            second.restore(wrong)
    second.clear()
    assert second.messages == [] and second.system_prompt == "be brief"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_kk": 1}, "did you mean 'top_k'"),
        ({"num_beams": 2}, "num_beams=2 is not possible in a chat"),
        ({"num_return_sequences": 2}, "num_return_sequences=2"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_an_impossible_option_is_refused_and_the_others_stay(options, message, tokenizer):
    session = ChatSession(FAMILIES[0].build(), tokenizer, options=GREEDY)
    with pytest.raises(OptionError, match=message):
        session.set_options(options)
    assert session.options == GREEDY


@pytest.mark.parametrize(
    "options", [{"use_cache": False}, {"penalty_alpha": 0.5, "top_k": 3}, {"cache_implementation": "static"}]
)
def test_modes_that_have_their_own_cache_keep_none(options, tokenizer):
    session = ChatSession(FAMILIES[0].build(max_position_embeddings=256), tokenizer, options={**GREEDY, **options})
    for text in ("a", "b"):
        assert session.answer(text).reused == 0


def test_the_stop_string_is_not_shown(tokenizer):
    model = FAMILIES[0].build(max_position_embeddings=256)
    given = iter(tokenizer(" well\nUse it.\nUser: no")["input_ids"])
    model.generate = partial(model.generate, prefix_allowed_tokens_fn=lambda row, ids: [next(given)])
    session = ChatSession(model, tokenizer, options={**GREEDY, "max_new_tokens": 30})
    pieces: list[str] = []
    answer = session.answer("x", pieces.append)
    assert answer.text == "".join(pieces) == "well\nUse it."
    assert answer.finish_reason is FinishReason.STOP_STRING


def test_helpers():
    assert common_length([1, 2, 3], [1, 2, 4]) == 2
    assert common_length([], [1]) == 0
    assert [overlap(text, "\nUser:") for text in ("a", "a\n", "\nUse", "\nUser")] == [0, 1, 4, 5]
    turns = [{"role": role, "content": ""} for role in ("user", "assistant", "user")]
    assert without_oldest_turn(turns) == turns[2:]
    assert without_oldest_turn(turns[:2]) == []
