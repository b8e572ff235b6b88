"""The generator of decode steps, and what consumes its steps: `generate`, streamers and `on_finish`."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import gptrio
from gptrio import BatchTextIteratorStreamer, FinishReason
from gptrio.generation.generate import _LOOPS
from gptrio.generation.loop import decode_steps
from gptrio.generation.options.schema import GenerationMode
from gptrio.testing import byte_tokenizer, tiny_config

IDS = torch.tensor([[5, 9, 36], [7, 7, 80], [1, 2, 3]])
ENDS = list(range(100, 140))
OPTIONS = {"max_new_tokens": 12, "eos_token_id": ENDS, "pad_token_id": 0}
CONTRAST = {"penalty_alpha": 0.6, "top_k": 4}
LOOKUP = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return gptrio.AutoModelForCausalLM.from_config(tiny_config("gpt2", initializer_range=0.3)).eval()


@pytest.fixture
def with_state(monkeypatch):
    """Calls a function with the state of a greedy `generate` in place of its loop."""

    def call(model, function, ids=IDS, **options):
        monkeypatch.setitem(_LOOPS, GenerationMode.GREEDY_SEARCH, lambda state: function(state) or state.ids)
        model.generate(ids, **{**OPTIONS, **options})

    return call


class Recorder:
    """Keeps every event in order."""

    def __init__(self):
        self.events = []

    def put(self, value):
        self.events.append(("put", value.tolist()))

    def end_row(self, row):
        self.events.append(("end_row", row))

    def end(self):
        self.events.append(("end",))

    def on_finish(self, row, reason, number):
        self.events.append(("finish", row, reason, number))


def test_the_steps_are_the_tokens_and_reasons_of_generate(model, with_state):
    ends = {}
    result = model.generate(IDS, **OPTIONS, on_finish=lambda row, *end: ends.update({row: end}))
    steps = []
    with_state(model, lambda state: steps.extend(decode_steps(state)))
    assert torch.equal(torch.stack([step.tokens for step in steps], dim=1), result[:, 3:])
    assert torch.equal(steps[-1].ids, result)
    found = {row: (reason, new) for new, step in enumerate(steps, 1) for row, reason in step.finished.items()}
    assert found == ends
    assert [step.is_last for step in steps] == [False] * (len(steps) - 1) + [True]


def test_a_steps_scores_are_those_of_its_tokens(model, with_state):
    steps = []
    with_state(model, lambda state: steps.extend(decode_steps(state)), IDS[:1], eos_token_id=None)
    assert all(torch.equal(step.scores.argmax(-1), step.tokens) for step in steps)
    assert torch.allclose(steps[0].scores, model(IDS[:1]).logits[:, -1], atol=1e-5)


def test_steps_are_made_when_they_are_asked_for(model, with_state):
    lengths = []

    def take_two(state):
        steps = decode_steps(state)
        lengths.append(state.step.cache.get_seq_length())
        for _ in range(2):
            next(steps)
            lengths.append(state.step.cache.get_seq_length())

    with_state(model, take_two)
    assert lengths == [0, 3, 4]


def test_the_state_of_a_call_is_fixed(model, with_state):
    def change(state):
        with pytest.raises(dataclasses.FrozenInstanceError):
            state.pad = 1

    with_state(model, change)


def test_a_criterion_finds_what_the_streamer_got_before(model):
    """As in Transformers: `put`, then the stopping criteria, for the same token."""
    recorder = Recorder()

    def two_tokens(ids, scores):
        recorder.events.append(("criterion", ids.shape[1] - 3))
        return sum(event[0] == "put" for event in recorder.events) == 3  # the prompt and two tokens

    ids = model.generate(
        IDS[:1], max_new_tokens=9, eos_token_id=None, stopping_criteria=[two_tokens], streamer=recorder
    )
    assert ids.shape[1] == 5
    assert [event[0] for event in recorder.events] == ["put", "put", "criterion", "put", "criterion", "end"]


@pytest.mark.parametrize(
    "options", [{}, LOOKUP, {"penalty_alpha": 0.6, "top_k": 4}], ids=["plain", "lookup", "contrast"]
)
def test_streamed_rows_are_the_result(model, options):
    """Each row's tokens up to its end come before `end_row`, in every mode."""
    recorder = Recorder()
    result = model.generate(IDS, **OPTIONS, **options, streamer=recorder, on_finish=recorder.on_finish)
    assert recorder.events[0] == ("put", IDS.tolist()) and recorder.events[-1] == ("end",)
    streamed = torch.empty(3, 0, dtype=torch.long)
    rows = {}
    for kind, *event in recorder.events[1:-1]:
        if kind == "put":
            streamed = torch.cat([streamed, torch.tensor(event[0]).view(3, -1)], dim=1)
        elif kind == "finish":
            row, reason, number = event
            assert streamed.shape[1] == number
            rows[row] = streamed[row].tolist()
            if reason is FinishReason.STOP_TOKEN:
                assert rows[row][-1] in ENDS
    assert torch.equal(streamed, result[:, 3:])
    assert rows == {row: ids[: len(rows[row])] for row, ids in enumerate(result[:, 3:].tolist())}
    order = [event[1] for event in recorder.events if event[0] == "finish"]
    assert [event[1] for event in recorder.events if event[0] == "end_row"] == [
        r for r in order if rows[r] != rows[order[-1]]
    ]


@pytest.mark.parametrize("options", [{}, LOOKUP], ids=["plain", "lookup"])
def test_text_streamed_for_a_row_is_its_text(model, options):
    tokenizer = byte_tokenizer()
    streamer = BatchTextIteratorStreamer(tokenizer, skip_prompt=True)
    numbers = {}
    result = model.generate(
        IDS,
        **OPTIONS,
        **options,
        streamer=streamer,
        on_finish=lambda row, reason, number: numbers.update({row: number}),
    )
    texts = dict.fromkeys(range(3), "")
    for row, text in streamer:
        texts[row] += text
    assert texts == {row: tokenizer.decode(result[row, 3 : 3 + numbers[row]].tolist()) for row in range(3)}


def test_one_prompt_of_contrastive_search_can_be_streamed(model):
    streamer = gptrio.TextIteratorStreamer(byte_tokenizer(), skip_prompt=True)
    result = model.generate(IDS[:1], max_new_tokens=6, eos_token_id=None, streamer=streamer, **CONTRAST)
    assert "".join(streamer) == byte_tokenizer().decode(result[0, 3:].tolist())


@pytest.mark.parametrize("options", [{}, LOOKUP], ids=["plain", "lookup"])
def test_every_criterion_is_called_once_for_each_token(model, options):
    lengths = []

    def criterion(ids, scores):
        lengths.append(ids.shape[1])
        return False

    model.generate(IDS[:1], max_new_tokens=8, eos_token_id=None, stopping_criteria=[criterion], **options)
    assert lengths == list(range(4, 12))


def test_finished_rows_hold_padding_and_the_others_go_on(model):
    first = int(model.generate(IDS, max_new_tokens=1)[0, -1])
    result = model.generate(IDS, max_new_tokens=5, eos_token_id=first, pad_token_id=250)
    free = model.generate(IDS, max_new_tokens=5, eos_token_id=None)
    for row, ids in enumerate(free[:, 3:].tolist()):
        end = ids.index(first) + 1 if first in ids else 5
        assert result[row, 3:].tolist() == (ids[:end] + [250] * (5 - end))[: result.shape[1] - 3]
