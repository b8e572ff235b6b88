"""Attributes of processors and stopping criteria: those of Transformers 4.56.2, by name and value, read and altered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.generation import logits_process, stopping_criteria

import gptrio
from gptrio.testing import assert_close

IDS = torch.tensor([[1, 2, 3, 1, 2], [4, 5, 6, 4, 5]])
SCORES = torch.linspace(-3, 3, 2 * 61).reshape(2, 61)[:, torch.randperm(61, generator=torch.Generator().manual_seed(1))]
# name -> arguments, and new values of attributes
PROCESSORS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "MinLengthLogitsProcessor": ((7, [1, 2]), {"min_length": 3, "eos_token_id": torch.tensor([4])}),
    "MinNewTokensLengthLogitsProcessor": ((3, 5, 7), {"min_new_tokens": 1, "prompt_length_to_skip": 4}),
    "TemperatureLogitsWarper": ((0.5,), {"temperature": 2.0}),
    "RepetitionPenaltyLogitsProcessor": ((1.5,), {"penalty": 3.0, "prompt_ignore_length": 3}),
    "EncoderRepetitionPenaltyLogitsProcessor": ((1.5, IDS), {"penalty": 0.5, "encoder_input_ids": IDS + 9}),
    "TopPLogitsWarper": ((0.5,), {"top_p": 0.9, "filter_value": -9.0, "min_tokens_to_keep": 2}),
    "TopKLogitsWarper": ((5,), {"top_k": 3, "filter_value": -9.0}),
    "MinPLogitsWarper": ((0.1,), {"min_p": 0.3, "filter_value": -9.0}),
    "TypicalLogitsWarper": ((0.5,), {"mass": 0.8, "min_tokens_to_keep": 3}),
    "EpsilonLogitsWarper": ((0.1,), {"epsilon": 0.02}),
    "EtaLogitsWarper": ((0.1,), {"epsilon": torch.tensor(0.02)}),
    "NoRepeatNGramLogitsProcessor": ((2,), {"ngram_size": 1}),
    "EncoderNoRepeatNGramLogitsProcessor": ((2, IDS), {}),
    "SequenceBiasLogitsProcessor": (({(1, 2): 0.5, (3,): 1.0},), {"sequence_bias": {(5, 6): 2.0, (7,): 3.0}}),
    "NoBadWordsLogitsProcessor": (([[1], [2, 3], [5]], [5]), {}),
    "ForcedBOSTokenLogitsProcessor": ((3,), {"bos_token_id": 4}),
    "ForcedEOSTokenLogitsProcessor": ((9, [1, 2]), {"max_length": 6, "eos_token_id": torch.tensor([3])}),
    "InfNanRemoveLogitsProcessor": ((), {}),
    "ExponentialDecayLengthPenalty": (((1, 1.5), 2, 5), {"regulation_start": 2, "regulation_factor": 1.1}),
    "LogitNormalization": ((), {}),
    "SuppressTokensAtBeginLogitsProcessor": (([1, 2], 4), {"begin_index": 5}),
    "SuppressTokensLogitsProcessor": (([1, 2],), {"suppress_tokens": torch.tensor([3, 4])}),
    "ClassifierFreeGuidanceLogitsProcessor": ((1.5,), {"guidance_scale": 3.0}),
    "WatermarkLogitsProcessor": ((61, "cpu"), {"bias": 3.0, "hash_key": 7, "greenlist_size": 9}),
    "SynthIDTextWatermarkLogitsProcessor": ((3, [1, 2, 3], 100, 7, 8, "cpu"), {"keys": torch.tensor([4, 5])}),
}
CRITERIA: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "MaxLengthCriteria": ((5, 9), {"max_length": 6}),
    "MaxTimeCriteria": ((3.0, 4.0), {"max_time": 1e12}),
    "EosTokenCriteria": ((3,), {"eos_token_id": torch.tensor([2, 5])}),
    "ConfidenceCriteria": ((0.5,), {"assistant_confidence_threshold": 0.001}),
}
CASES = {**PROCESSORS, **CRITERIA}
UNUSED = {"logits_indices", "cu_seq_lens_q"}  # of batches without padding, which no model of these families takes


def pair(name: str) -> tuple[Any, Any]:
    theirs = getattr(logits_process, name, None) or getattr(stopping_criteria, name)
    return getattr(gptrio, name)(*CASES[name][0]), theirs(*CASES[name][0])


def assert_same_attributes(ours: Any, theirs: Any) -> None:
    for name, expected in vars(theirs).items():
        if name.startswith("_") or name in UNUSED:
            continue
        actual = getattr(ours, name)
        if isinstance(expected, torch.Tensor):
            assert actual.dtype == expected.dtype
            assert torch.equal(actual, expected), name
        elif isinstance(expected, torch.Generator):
            assert actual.initial_seed() == expected.initial_seed()
        elif hasattr(expected, "__dict__"):
            assert_same_attributes(actual, expected)
        else:
            assert actual == expected, name


def called(rule: Any, width: int = 5) -> torch.Tensor:
    rows = 1 if type(rule).__name__ in ("ClassifierFreeGuidanceLogitsProcessor", "ConfidenceCriteria") else 2
    scores = SCORES if isinstance(rule, (gptrio.LogitsProcessor, transformers.LogitsProcessor)) else (SCORES[:rows],)
    return torch.as_tensor(rule(IDS[:rows, :width].clone(), scores)).reshape(-1, 61 if scores is SCORES else 1)


@pytest.mark.parametrize("name", CASES)
def test_attributes_are_upstreams_before_and_after_a_call(name: str) -> None:
    ours, theirs = pair(name)
    assert_same_attributes(ours, theirs)
    actual, expected = called(ours), called(theirs)
    assert torch.equal(actual, expected) if expected.dtype == torch.bool else bool(actual.isclose(expected).all())
    assert_same_attributes(ours, theirs)


@pytest.mark.parametrize("name", [name for name, (_, changes) in CASES.items() if changes])
@pytest.mark.parametrize("when", ["new", "used"])
def test_altered_attributes_count(name: str, when: str) -> None:
    ours, theirs = pair(name)
    for rule in (ours, theirs):
        if when == "used" and name != "SynthIDTextWatermarkLogitsProcessor":
            called(rule)
        for attribute, value in CASES[name][1].items():
            setattr(rule, attribute, value)
        if hasattr(rule, "prepared_bias_variables"):
            rule.prepared_bias_variables = False
    width = 1 if name.startswith("ForcedBOS") else 5
    actual, expected = called(ours, width), called(theirs, width)
    assert not torch.equal(expected, called(pair(name)[1], width)), "the change has no effect"
    if expected.dtype == torch.bool:
        assert torch.equal(actual, expected)
    else:
        assert torch.equal(actual.isinf(), expected.isinf())
        assert_close(actual.clamp(min=-99), expected.clamp(min=-99), 1e-5)


def test_ids_edited_in_place_count() -> None:
    ours, theirs = pair("SuppressTokensLogitsProcessor")
    for rule in (ours, theirs):
        called(rule)
        rule.suppress_tokens[0] = 9
    assert torch.equal(called(ours), called(theirs))


def test_processors_of_a_call_hold_the_same_attributes() -> None:
    seen: dict[str, Any] = {}

    def loop(model: Any, ids: Any, logits_processor: Any, stopping_criteria: Any, **kwargs: Any) -> Any:
        seen[type(model).__module__.partition(".")[0]] = [*logits_processor, *stopping_criteria]
        return ids

    from tests.parity.generation import pair_of_models

    options: dict[str, Any] = {"min_new_tokens": 3, "suppress_tokens": [4], "begin_suppress_tokens": [5, 6]}
    options |= {"do_sample": True, "top_k": 7, "top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.2}
    for model in pair_of_models("gpt2"):
        model.generate(IDS, max_new_tokens=6, pad_token_id=1, custom_generate=loop, **options)
    for ours, theirs in zip(seen["gptrio"], seen["transformers"], strict=True):
        vars(theirs).pop("max_position_embeddings", None)  # ours is set where it can matter only
        assert type(ours).__name__ == type(theirs).__name__
        assert_same_attributes(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
def test_the_context_of_guidance(use_cache: bool) -> None:
    from tests.parity.generation import pair_of_models

    results = []
    for library, model in zip((gptrio, transformers), pair_of_models("gpt_neox"), strict=True):
        guide = library.UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, model, IDS[:, :2], use_cache=use_cache)
        seen = [dict(guide.unconditional_context)]
        guide.unconditional_context["input_ids"] = IDS[:, 1:3]
        ids = IDS.clone()
        for _ in range(3):
            scores = guide(ids, torch.linspace(-1, 1, 2 * model.config.vocab_size).reshape(2, -1))
            seen.append({**guide.unconditional_context, "scores": scores})
            ids = torch.cat([ids, ids[:, :1]], dim=1)
        results.append(seen)
    for mine, expected in zip(*results, strict=True):
        assert mine.keys() == expected.keys()
        assert (mine["use_cache"], mine["first_pass"]) == (expected["use_cache"], expected["first_pass"])
        assert (mine["past_key_values"] is None) == (expected["past_key_values"] is None)
        for name in ("input_ids", "attention_mask"):
            assert expected[name] is mine[name] is None or torch.equal(mine[name], expected[name])
        if "scores" in expected:
            assert_close(mine["scores"], expected["scores"], 1e-4)


@torch.no_grad()
def test_guidance_calls_a_model_of_the_users_own_as_the_reference_does() -> None:
    from tests.parity.generation import pair_of_models

    results = []
    for library, model in zip((gptrio, transformers), pair_of_models("gpt2"), strict=True):

        def mine(ids: Any, attention_mask: Any, use_cache: bool, past_key_values: Any, model: Any = model) -> Any:
            assert bool(attention_mask.all())
            return model(ids, use_cache=use_cache, past_key_values=past_key_values)

        guide = library.UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, mine, IDS[:, :2])
        scores = torch.linspace(-1, 1, 2 * model.config.vocab_size).reshape(2, -1)
        results.append([guide(ids, scores) for ids in (IDS, torch.cat([IDS, IDS[:, :1]], dim=1))])
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, 1e-4)
