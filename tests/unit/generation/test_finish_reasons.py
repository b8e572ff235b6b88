"""`generate` reports each run of the model, and why each row is finished after how many tokens, in every mode."""

from __future__ import annotations

import pytest
import torch

import gptrio
from gptrio import FinishReason, MaxTimeCriteria
from gptrio.generation.stopping import StoppingCriteria
from gptrio.testing import byte_tokenizer, tiny_config

IDS = torch.tensor([[5, 9, 36], [7, 7, 80], [1, 2, 3]])
LIMIT = 12
TOKENIZER = byte_tokenizer()
STOPS = ["e", "w", "\xe9", "\xb5"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return gptrio.AutoModelForCausalLM.from_config(tiny_config("gpt2", initializer_range=0.3)).eval()


def ends(ids, row, prompt, tokens, stops):
    """The first token after which a row may not go on, found by trying one after the other."""
    for new in range(1, LIMIT + 1):
        if int(ids[row, prompt + new - 1]) in tokens:
            return FinishReason.STOP_TOKEN, new
        if any(stop in TOKENIZER.decode(ids[row, : prompt + new]) for stop in stops):
            return FinishReason.STOP_STRING, new
    return FinishReason.LENGTH, LIMIT


MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "seed": 5, "num_return_sequences": 8, "top_k": 0},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "dola": {"dola_layers": [0], "repetition_penalty": 1.2},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "beams": {"num_beams": 4, "num_return_sequences": 4},
    "sampled beams": {"num_beams": 4, "num_return_sequences": 3, "do_sample": True, "seed": 1},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 4},
    "constrained": {"num_beams": 4, "force_words_ids": [[30, 31]], "num_return_sequences": 2},
}


@pytest.mark.parametrize("with_dictionary", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_reason_and_number_of_every_row(model, mode, with_dictionary):
    found = {}
    tokens = list(range(100, 140))
    by_string = {} if mode in ("groups", "constrained") else {"stop_strings": STOPS, "tokenizer": TOKENIZER}
    result = model.generate(
        IDS,
        max_new_tokens=LIMIT,
        eos_token_id=tokens,
        pad_token_id=0,
        return_dict_in_generate=with_dictionary,
        on_finish=lambda row, *end: found.setdefault(row, []).append(end),
        **by_string,
        **MODES[mode],
    )
    ids = result.sequences if with_dictionary else result
    stops = by_string.get("stop_strings", ())
    assert found == {row: [ends(ids, row, 3, tokens, stops)] for row in range(len(ids))}


@pytest.mark.parametrize("mode", MODES)
def test_every_run_of_the_model_is_reported(model, mode):
    found = []
    model.generate(IDS, max_new_tokens=LIMIT, pad_token_id=0, on_step=lambda *step: found.append(step), **MODES[mode])
    numbers = [number for number, _ in found]
    assert {most for _, most in found} == {LIMIT}
    assert numbers[0] == 1 and numbers == sorted(numbers)
    assert len(numbers) > 1 and LIMIT - 3 <= numbers[-1] <= LIMIT


def test_the_modes_above_end_in_every_way(model):
    """So that the test before cannot pass by rows that all end alike."""
    found = []
    model.generate(
        IDS, max_new_tokens=LIMIT, eos_token_id=list(range(100, 140)), pad_token_id=0, stop_strings=STOPS,
        tokenizer=TOKENIZER, on_finish=lambda *end: found.append(end), **MODES["sampling"],
    )  # fmt: skip
    assert {reason for _, reason, _ in found} == {
        FinishReason.STOP_TOKEN,
        FinishReason.STOP_STRING,
        FinishReason.LENGTH,
    }
    assert len({number for *_, number in found}) > 3


class AfterThree(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 6)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [(AfterThree(), FinishReason.CRITERION), (MaxTimeCriteria(0.0), FinishReason.TIME)],
    ids=["the caller's own", "time"],
)
def test_rules_of_the_callers_are_reasons_too(model, rule, reason):
    found = []
    ids = model.generate(
        IDS, max_new_tokens=LIMIT, eos_token_id=None, stopping_criteria=[rule], on_finish=lambda *end: found.append(end)
    )
    assert found == [(row, reason, ids.shape[1] - 3) for row in range(3)]
    assert ids.shape[1] < 3 + LIMIT


def test_a_prompt_cut_to_the_context_counts_new_tokens_only(model):
    found = []
    ids = torch.arange(80)[None] % 90
    model.generate(
        ids, max_new_tokens=4, overflow="truncate_left", eos_token_id=None, on_finish=lambda *end: found.append(end)
    )
    assert found == [(0, FinishReason.LENGTH, 4)]
