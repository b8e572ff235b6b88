"""Assisted generation and prompt lookup against transformers 4.56.2 and against plain decoding."""

from __future__ import annotations

import copy
import random
import warnings

import pytest
import torch

import gptrio
from gptrio.testing import byte_tokenizer, tiny_config
from tests.cases import first
from tests.parity.generation import FAMILIES, pair_of_models, random_batch
from tests.parity.test_generate_greedy import random_options

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PER_TEST = 13


def one_row(rng: random.Random) -> dict:
    """A prompt with repetitions, so that lookup finds something."""
    batch = random_batch(rng, 257, rows=1)
    ids = batch["input_ids"].repeat(1, rng.randint(1, 2))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def greedy_options(rng: random.Random, length: int) -> dict:
    """Options as for greedy search, but those that need a cache or run the model themselves."""
    options = random_options(rng, 257, length)
    for name in ("use_cache", "guidance_scale"):
        options.pop(name, None)
    return options


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", first(range(0, 100, PER_TEST)))
def test_greedy_with_a_draft_model(family, start):
    ours, theirs = pair_of_models(family)
    for case in range(start, start + PER_TEST):
        rng = random.Random(case)
        own_draft, other_draft = (ours, theirs) if case % 2 else pair_of_models(family, seed=1)
        batch = one_row(rng)
        options = greedy_options(rng, batch["input_ids"].shape[1])
        options.pop("forced_eos_token_id", None)  # is forced on the draft too early upstream
        options.pop("min_length", None)
        other_draft = copy.deepcopy(other_draft)  # upstream changes the draft's own options
        expected = theirs.generate(**batch, **options, assistant_model=other_draft)
        result = ours.generate(**batch, **options, assistant_model=own_draft)
        assert torch.equal(result, expected), (case, options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", first(range(0, 100, PER_TEST)))
def test_greedy_with_prompt_lookup(family, start):
    ours, theirs = pair_of_models(family)
    for case in range(start, start + PER_TEST):
        rng = random.Random(case)
        batch = one_row(rng)
        options = greedy_options(rng, batch["input_ids"].shape[1])
        options["eos_token_id"] = options["eos_token_id"] or 255  # lookup needs one upstream
        options |= {"prompt_lookup_num_tokens": rng.randint(1, 5), "max_matching_ngram_size": rng.randint(1, 3)}
        result, expected = ours.generate(**batch, **options), theirs.generate(**batch, **options)
        expected = expected[:, : result.shape[1]]  # upstream may go beyond the longest length that was asked for
        assert torch.equal(result, expected), (case, options)
        plain = {name: value for name, value in options.items() if name != "prompt_lookup_num_tokens"}
        assert torch.equal(result, ours.generate(**batch, **plain)), (case, options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["other model", "same model", "lookup", "early exit"])
def test_batches_equal_plain_decoding(family, kind):
    ours, _ = pair_of_models(family)
    kinds = {
        "other model": {"assistant_model": pair_of_models(family, seed=1)[0]},
        "same model": {"assistant_model": ours},
        "lookup": {"prompt_lookup_num_tokens": 4},
        "early exit": {"assistant_early_exit": 1},
    }
    for case in range(6):
        rng = random.Random(case)
        batch = random_batch(rng, 257)
        options = greedy_options(rng, batch["input_ids"].shape[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = ours.generate(**batch, **options)
            assert torch.equal(ours.generate(**batch, **options, **kinds[kind]), expected), (case, options)


def test_everything_returned():
    ours, _ = pair_of_models("gpt2", attn_implementation="eager")
    batch = random_batch(random.Random(1), 257, rows=2, padded=True)
    flags = {"output_scores": True, "output_logits": True, "output_attentions": True, "output_hidden_states": True}
    options = {"max_new_tokens": 9, "return_dict_in_generate": True, "suppress_tokens": [3], **flags}
    plain = ours.generate(**batch, **options)
    assisted = ours.generate(**batch, **options, assistant_model=ours)
    assert list(plain.keys()) == list(assisted.keys())
    assert plain.past_key_values.get_seq_length() == assisted.past_key_values.get_seq_length()
    for name in ("scores", "logits", "attentions", "hidden_states"):
        for one, other in zip(plain[name], assisted[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_draft_with_another_tokenizer():
    ours, _ = pair_of_models("gpt2")
    torch.manual_seed(5)
    other = gptrio.AutoModelForCausalLM.from_config(tiny_config("gpt2", vocab_size=300, initializer_range=0.3)).eval()
    tokenizer = byte_tokenizer()
    inputs = tokenizer("the cat sat on the mat", return_tensors="pt")
    expected = ours.generate(**inputs, max_new_tokens=20)
    result = ours.generate(
        **inputs, max_new_tokens=20, assistant_model=other, tokenizer=tokenizer, assistant_tokenizer=tokenizer
    )
    assert torch.equal(result, expected)


def test_a_useless_draft_is_left_alone():
    ours, _ = pair_of_models("gpt2", max_position_embeddings=400)
    draft, _ = pair_of_models("gpt2", seed=1, max_position_embeddings=400)
    runs = {"draft": 0, "model": 0}
    handles = [
        model.register_forward_hook(lambda *_, name=name: runs.__setitem__(name, runs[name] + 1))
        for name, model in (("draft", draft), ("model", ours))
    ]
    ids = torch.arange(1, 9)[None]
    ours.generate(ids, max_new_tokens=300, eos_token_id=None, assistant_model=draft)
    for handle in handles:
        handle.remove()
    assert runs["model"] <= 300 and runs["draft"] < 30, runs


@pytest.mark.parametrize("family", first(FAMILIES))
@pytest.mark.parametrize("schedule", ["heuristic", "heuristic_transient", "constant"])
def test_what_the_schedule_has_come_to_is_kept_on_the_draft(family, schedule):
    pair = pair_of_models(family)
    seen = set()
    for case in range(12 if schedule == "heuristic" else 4):
        rng = random.Random(case)
        batch, same = one_row(rng), case % 2 == 0
        numbers = []
        for model, other in zip(pair, pair_of_models(family, seed=1), strict=True):
            draft = copy.deepcopy(model if same else other)
            own = draft.generation_config
            own.num_assistant_tokens, own.num_assistant_tokens_schedule = 3, schedule
            own.assistant_confidence_threshold = 0.0
            options = {"max_new_tokens": 5 + case, "pad_token_id": 0}
            ids = model.generate(**batch, assistant_model=draft, **options)
            again = model.generate(**batch, assistant_model=draft, **options)
            numbers.append((own.num_assistant_tokens, ids.tolist(), again.tolist()))
        assert numbers[0] == numbers[1], case
        seen.add(int(numbers[0][0]))
    assert len(seen) == 1 if schedule != "heuristic" else len(seen) > 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_that_reaches_the_end_counts_as_upstream_counts_it(family):
    numbers = []
    for model in pair_of_models(family):
        draft = copy.deepcopy(model)
        own = draft.generation_config
        own.num_assistant_tokens, own.num_assistant_tokens_schedule = 4, "heuristic"
        ids = torch.tensor([[3, 4, 5]])
        plain = model.generate(ids, max_new_tokens=9, pad_token_id=0)
        for place in (1, 3, 6):
            model.generate(
                ids, max_new_tokens=9, pad_token_id=0, assistant_model=draft, eos_token_id=int(plain[0, 3 + place])
            )
            numbers.append(own.num_assistant_tokens)
    assert numbers[:3] == numbers[3:]
