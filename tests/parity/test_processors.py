"""Every score processor against transformers 4.56.2, value by value."""

import pytest
import torch

import gptrio
from gptrio.generation.processors.build import build_processors

transformers = pytest.importorskip("transformers")

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

DECAY = {"exponential_decay_length_penalty": (2, 1.3), "eos_token_id": [3, 4], "input_ids_seq_length": 2}


def allowed_tokens(prompt, ids):
    return [prompt, int(ids[-1])]


# class, arguments; a string argument names a tensor of the case
CASES = [
    ("TemperatureLogitsWarper", {"temperature": 0.7}),
    ("TemperatureLogitsWarper", {"temperature": 3.0}),
    ("TopKLogitsWarper", {"top_k": 5}),
    ("TopKLogitsWarper", {"top_k": 2, "min_tokens_to_keep": 4, "filter_value": -7.0}),
    ("TopKLogitsWarper", {"top_k": 10_000}),
    ("TopPLogitsWarper", {"top_p": 0.9}),
    ("TopPLogitsWarper", {"top_p": 0.2, "min_tokens_to_keep": 3}),
    ("TopPLogitsWarper", {"top_p": 0.0}),
    ("MinPLogitsWarper", {"min_p": 0.1}),
    ("MinPLogitsWarper", {"min_p": 0.9, "min_tokens_to_keep": 3}),
    ("TypicalLogitsWarper", {"mass": 0.8}),
    ("TypicalLogitsWarper", {"mass": 0.1, "min_tokens_to_keep": 4}),
    ("EpsilonLogitsWarper", {"epsilon": 0.01}),
    ("EpsilonLogitsWarper", {"epsilon": 0.5, "min_tokens_to_keep": 3}),
    ("EtaLogitsWarper", {"epsilon": 0.02}),
    ("EtaLogitsWarper", {"epsilon": 0.5, "min_tokens_to_keep": 2}),
    ("LogitNormalization", {}),
    ("RepetitionPenaltyLogitsProcessor", {"penalty": 1.3}),
    ("RepetitionPenaltyLogitsProcessor", {"penalty": 0.8, "prompt_ignore_length": 4}),
    ("EncoderRepetitionPenaltyLogitsProcessor", {"penalty": 1.4, "encoder_input_ids": "prompt"}),
    ("NoRepeatNGramLogitsProcessor", {"ngram_size": 1}),
    ("NoRepeatNGramLogitsProcessor", {"ngram_size": 2}),
    ("NoRepeatNGramLogitsProcessor", {"ngram_size": 3}),
    ("EncoderNoRepeatNGramLogitsProcessor", {"encoder_ngram_size": 1, "encoder_input_ids": "prompt"}),
    ("EncoderNoRepeatNGramLogitsProcessor", {"encoder_ngram_size": 2, "encoder_input_ids": "prompt"}),
    ("EncoderNoRepeatNGramLogitsProcessor", {"encoder_ngram_size": 3, "encoder_input_ids": "prompt"}),
    ("SequenceBiasLogitsProcessor", {"sequence_bias": {(1,): 2.0, (2, 1): 4.0, (1, 2): -3.0, (1, 1, 2): 9.0}}),
    ("SequenceBiasLogitsProcessor", {"sequence_bias": [[[4], -2.5], [[2, 3], 1.25], [[1, 2, 3], float("inf")]]}),
    ("NoBadWordsLogitsProcessor", {"bad_words_ids": [[1], [2, 3], [3, 3], [1, 2, 1], [5]], "eos_token_id": 5}),
    ("NoBadWordsLogitsProcessor", {"bad_words_ids": [[5]], "eos_token_id": [5, 6]}),
    ("PrefixConstrainedLogitsProcessor", {"prefix_allowed_tokens_fn": allowed_tokens, "num_beams": 1}),
    ("MinLengthLogitsProcessor", {"min_length": 5, "eos_token_id": 3}),
    ("MinLengthLogitsProcessor", {"min_length": 9, "eos_token_id": [3, 4, 10_000]}),
    ("MinNewTokensLengthLogitsProcessor", {"prompt_length_to_skip": 3, "min_new_tokens": 5, "eos_token_id": 2}),
    ("ForcedBOSTokenLogitsProcessor", {"bos_token_id": 4}),
    ("ForcedEOSTokenLogitsProcessor", {"max_length": 9, "eos_token_id": 4}),
    ("ForcedEOSTokenLogitsProcessor", {"max_length": 9, "eos_token_id": [4, 5]}),
    ("ExponentialDecayLengthPenalty", DECAY),
    ("SuppressTokensLogitsProcessor", {"suppress_tokens": [1, 5, 7]}),
    ("SuppressTokensAtBeginLogitsProcessor", {"begin_suppress_tokens": [1, 5], "begin_index": 8}),
]  # fmt: skip


def random_case(dtype: torch.dtype, length: int, vocab: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of a small alphabet (so that n-grams recur) and scores without ties in a row."""
    generator = torch.Generator().manual_seed(length * 1000 + vocab)
    ids = torch.randint(0, 4, (rows, length), generator=generator)
    grid = torch.linspace(-8, 8, vocab, dtype=torch.float64)
    scores = torch.stack([grid[torch.randperm(vocab, generator=generator)] for _ in range(rows)])
    return ids, scores.to(dtype)


def build_pair(name: str, arguments: dict, prompt: torch.Tensor) -> tuple:
    arguments = {key: prompt if isinstance(value, str) else value for key, value in arguments.items()}
    return getattr(gptrio, name)(**arguments), getattr(transformers, name)(**arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "arguments"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_equals_upstream(name, arguments, dtype):
    for length in (1, 2, 3, 8, 9, 40):
        ids, scores = random_case(dtype, length, vocab=60)
        prompt, _ = random_case(dtype, 11, vocab=60)
        ours, theirs = build_pair(name, arguments, prompt)
        before = scores.clone()
        found, expected = ours(ids, scores), theirs(ids, scores.clone())
        assert torch.equal(scores, before), "scores changed in place"
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("spread", [0.5, 3.0, 10.0])
@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.9, 0.999])
def test_top_p_over_a_large_vocabulary(top_p, spread):
    scores = spread * torch.randn(3, 20_000, generator=torch.Generator().manual_seed(6))
    after_top_k = gptrio.TopKLogitsWarper(50)(None, scores)
    for given in (scores, after_top_k):
        ours, theirs = (
            lib.TopPLogitsWarper(top_p, min_tokens_to_keep=2)(None, given) for lib in (gptrio, transformers)
        )
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_invalid_values_are_replaced(dtype):
    scores = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.5]], dtype=dtype)
    ours, theirs = gptrio.InfNanRemoveLogitsProcessor(), transformers.InfNanRemoveLogitsProcessor()
    assert torch.equal(ours(None, scores), theirs(None, scores))


@pytest.mark.parametrize("group", [0, 1, 2])
def test_hamming_diversity(group):
    arguments = {"diversity_penalty": 0.7, "num_beams": 6, "num_beam_groups": 3}
    _, scores = random_case(torch.float32, 4, vocab=30, rows=4)  # 2 prompts, groups of 2 beams
    chosen = torch.tensor([1, 1, 2, 3, 0, 0, 5, 6, 5, 5, 0, 0])
    ours = gptrio.HammingDiversityLogitsProcessor(**arguments)
    theirs = transformers.HammingDiversityLogitsProcessor(**arguments)
    arguments = {"current_tokens": chosen, "beam_group_idx": group}
    torch.testing.assert_close(ours(None, scores, **arguments), theirs(None, scores, **arguments), rtol=0, atol=1e-6)


def test_batched_guidance():
    _, scores = random_case(torch.float32, 4, vocab=30, rows=6)
    ids = torch.zeros(3, 4, dtype=torch.long)
    ours, theirs = (lib.ClassifierFreeGuidanceLogitsProcessor(1.7) for lib in (gptrio, transformers))
    torch.testing.assert_close(ours(ids, scores), theirs(ids, scores), rtol=0, atol=0)


def test_prompts_repeat_for_their_beams():
    prompt = torch.tensor([[1, 2, 1, 2], [3, 0, 3, 0]])
    ids = torch.tensor([[5, 1], [5, 2], [5, 3], [5, 0]])
    _, scores = random_case(torch.float32, 2, vocab=20, rows=4)
    ours, theirs = (lib.EncoderNoRepeatNGramLogitsProcessor(2, prompt) for lib in (gptrio, transformers))
    assert torch.equal(ours(ids, scores), theirs(ids, scores))


OPTIONS = [
    {},
    {"do_sample": True},
    {"do_sample": True, "temperature": 0.5, "top_k": 0, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.8},
    {"do_sample": True, "num_beams": 2, "top_k": 3, "eos_token_id": [1, 2], "epsilon_cutoff": 0.01, "eta_cutoff": 0.01},
    {"do_sample": True, "num_beams": 3, "top_p": 0.1, "renormalize_logits": True},
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.1},
    {"encoder_no_repeat_ngram_size": 2, "sequence_bias": {(1, 2): -3.0}, "bad_words_ids": [[1], [2, 3]]},
    {"min_length": 20, "min_new_tokens": 4, "eos_token_id": 3, "forced_eos_token_id": 3, "max_length": 6},
    {"forced_bos_token_id": 2, "begin_suppress_tokens": [1], "suppress_tokens": [2], "remove_invalid_values": True},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {"exponential_decay_length_penalty": (1, 1.2), "eos_token_id": 3, "renormalize_logits": True},
    {"do_sample": True, "top_k": 0, "top_p": None, "temperature": None, "typical_p": None},
]


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_built_in_upstreams_order(options, length):
    ids, scores = random_case(torch.float32, length, vocab=40, rows=4)
    ours = build_processors(gptrio.GenerationConfig(**options), prompt_length=length, vocab_size=40, prompt_ids=ids)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, n_embd=4, n_layer=1, n_head=1))
    config = transformers.GenerationConfig(**options)
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True)
    theirs = model._get_logits_processor(config, input_ids_seq_length=length, encoder_input_ids=ids)
    assert [type(item).__name__ for item in ours] == [type(item).__name__ for item in theirs]
    kwargs = {"current_tokens": torch.zeros(8, dtype=torch.long), "beam_group_idx": 1}
    torch.testing.assert_close(ours(ids, scores, **kwargs), theirs(ids, scores, **kwargs), rtol=0, atol=1e-6)


def test_own_processors_join_as_upstream():
    def shift(input_ids, scores):
        return scores + 1

    options = {"repetition_penalty": 1.5, "do_sample": True, "temperature": 0.5}
    own = [gptrio.RepetitionPenaltyLogitsProcessor(3.0), shift]
    with pytest.warns(gptrio.GptrioWarning, match="RepetitionPenaltyLogitsProcessor from logits_processor="):
        built = build_processors(
            gptrio.GenerationConfig(**options), prompt_length=3, vocab_size=9, logits_processor=own
        )
    names = ["RepetitionPenaltyLogitsProcessor", "function", "TemperatureLogitsWarper", "TopKLogitsWarper"]
    assert [type(item).__name__ for item in built] == names
    assert built[0] is own[0]
