"""Stopping criteria: strings over several bytes, the caller's own rules, wrong arguments."""

import pytest
import torch

import gptrio
from gptrio import FinishReason, GenerationConfig, GptrioWarning, OptionError
from gptrio.generation.stopping import build_stopping, finish_reasons, sequence_finish_reason

IDS = torch.tensor([[1, 2], [1, 3]])


@pytest.mark.parametrize("stop", ["你好", "好\n", "👋", "rld —"])
def test_stop_string_within_multibyte_text(tokenizer, stop):
    criterion = gptrio.StopStringCriteria(tokenizer, stop)
    text = "hello world — 你好\n 👋 hello"
    ids = tokenizer.encode(text)
    done = [bool(criterion(torch.tensor([ids[:n]]), None)) for n in range(1, len(ids) + 1)]
    shortest = next(n for n in range(len(ids)) if stop in tokenizer.decode(ids[: n + 1]))
    assert [n for n, finished in enumerate(done) if finished] == [shortest]


def test_special_tokens_can_be_stop_strings(tokenizer):
    criterion = gptrio.StopStringCriteria(tokenizer, "<|endoftext|>")
    ids = torch.tensor([[5, tokenizer.eos_token_id], [5, 6]])
    assert criterion(ids, None).tolist() == [True, False]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda tok: gptrio.StopStringCriteria(None, "stop"), "pass tokenizer="),
        (lambda tok: build_stopping(GenerationConfig(stop_strings="stop")), "pass tokenizer="),
        (lambda tok: gptrio.StopStringCriteria(tok, ["a", ""]), "none of them empty"),
        (lambda tok: gptrio.StopStringCriteria(tok, []), "none of them empty"),
        (lambda tok: gptrio.EosTokenCriteria([]), "eos_token_id=\\[\\]"),
        (lambda tok: gptrio.MaxTimeCriteria(-1.0), "max_time=-1.0"),
    ],
)
def test_wrong_arguments_are_named(tokenizer, build, message):
    with pytest.raises(OptionError, match=message):
        build(tokenizer)


def test_own_criteria_speak_for_rows_or_for_all():
    rows = gptrio.StoppingCriteriaList([lambda ids, scores: ids[:, -1] == 3])
    assert rows(IDS, None).tolist() == [False, True]
    assert gptrio.StoppingCriteriaList([lambda ids, scores, **rest: True])(IDS, None).tolist() == [True, True]
    assert gptrio.StoppingCriteriaList()(IDS, None).tolist() == [False, False]


def test_options_build_their_criteria(tokenizer):
    config = GenerationConfig(max_time=5.0, stop_strings=["x"], eos_token_id=[1, 2], is_assistant=True)
    names = [type(item).__name__ for item in build_stopping(config, tokenizer=tokenizer)]
    assert names == [
        "MaxLengthCriteria", "MaxTimeCriteria", "StopStringCriteria", "EosTokenCriteria", "ConfidenceCriteria",
    ]  # fmt: skip


def test_own_criterion_takes_the_place_of_a_built_one():
    own = gptrio.MaxLengthCriteria(3)
    with pytest.warns(GptrioWarning, match="MaxLengthCriteria from stopping_criteria="):
        built = build_stopping(GenerationConfig(), stopping_criteria=[own])
    assert built == [own]


def test_reaching_the_models_positions_warns_once():
    criterion = gptrio.MaxLengthCriteria(9, max_position_embeddings=2)
    with pytest.warns(GptrioWarning, match="the model's 2 positions") as caught:
        assert criterion(IDS, None).tolist() == [False, False]
        criterion(IDS, None)
    assert len(caught) == 1


def test_confidence_looks_at_every_row():
    scores = (torch.tensor([[0.0, 0.0, 9.0, 0.0], [9.0, 0.0, 0.0, 0.0]]),)
    assert gptrio.ConfidenceCriteria(0.5)(IDS, scores).tolist() == [False, True]


def test_criteria_gain_a_length_or_warn_of_another():
    assert gptrio.validate_stopping_criteria(gptrio.StoppingCriteriaList(), 5).max_length == 5
    criteria = gptrio.StoppingCriteriaList([gptrio.MaxLengthCriteria(4)])
    with pytest.warns(GptrioWarning, match="stop at 4 tokens, not at max_length=5"):
        assert gptrio.validate_stopping_criteria(criteria, 5).max_length == 4


def test_the_first_reason_in_their_order_counts(tokenizer):
    end, length, late = gptrio.EosTokenCriteria(3), gptrio.MaxLengthCriteria(2), gptrio.MaxTimeCriteria(0.0, 0.0)
    own = [lambda ids, scores: ids[:, -1] == 2]
    assert finish_reasons(own, IDS) == [FinishReason.CRITERION, None]
    assert finish_reasons([*own, late], IDS) == [FinishReason.TIME, FinishReason.TIME]
    assert finish_reasons([late, *own, length], IDS) == [FinishReason.LENGTH, FinishReason.LENGTH]
    assert finish_reasons([length, end], IDS) == [FinishReason.LENGTH, FinishReason.STOP_TOKEN]
    text = gptrio.StopStringCriteria(tokenizer, tokenizer.decode([2]))
    assert finish_reasons([length, late, text], IDS) == [FinishReason.STOP_STRING, FinishReason.LENGTH]


@pytest.mark.parametrize("done", [True, torch.tensor(True), torch.tensor([True])], ids=["bool", "scalar", "one row"])
def test_a_criterion_may_answer_for_all_rows(done):
    assert finish_reasons([lambda ids, scores: done], IDS) == [FinishReason.CRITERION] * 2


def test_a_sequence_of_beam_search_ends_by_a_known_rule_or_the_callers():
    def never(ids, scores):
        raise AssertionError("the caller's rules are not called after the search")

    criteria = [never, gptrio.EosTokenCriteria(2), gptrio.MaxLengthCriteria(3)]
    found = [sequence_finish_reason(criteria, torch.tensor(ids)) for ids in ([1, 2], [1, 5, 4], [1, 5])]
    assert found == [FinishReason.STOP_TOKEN, FinishReason.LENGTH, FinishReason.CRITERION]


def test_reasons_have_the_names_of_servers():
    names = {reason.value: reason.api_name for reason in FinishReason}
    assert names == {
        "stop_token": "stop", "stop_string": "stop", "length": "length", "time": "time", "criterion": "criterion",
    }  # fmt: skip
