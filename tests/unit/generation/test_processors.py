"""Score processors: lists of them, guidance, and wrong arguments."""

import pytest
import torch

import gptrio
from gptrio import InputError, LogitsProcessor, LogitsProcessorList, OptionError, TokenIdError
from gptrio.generation.processors.build import build_processors
from gptrio.outputs import CausalLMOutputWithPast

IDS = torch.tensor([[1, 2, 1], [0, 2, 2]])
SCORES = torch.linspace(-2, 3, 12).reshape(2, 6)


class Scale(LogitsProcessor):
    def __call__(self, input_ids, scores, factor, shift=0.0):
        return scores * factor + shift


def test_list_gives_each_processor_the_arguments_it_names():
    chain = LogitsProcessorList(
        [Scale(), lambda ids, scores: scores + 1, lambda ids, scores, **rest: scores * len(rest)]
    )
    assert torch.equal(chain(IDS, SCORES, factor=2.0, other=1), (SCORES * 2 + 1) * 2)
    assert torch.equal(chain(IDS, SCORES, factor=2.0, shift=1.0), (SCORES * 2 + 2) * 2)
    with pytest.raises(InputError, match="Scale needs the arguments \\['factor'\\]"):
        chain(IDS, SCORES)


def test_base_class_asks_for_a_call():
    with pytest.raises(NotImplementedError, match="LogitsProcessor does not define __call__"):
        LogitsProcessor()(IDS, SCORES)
    assert gptrio.LogitsWarper is LogitsProcessor


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gptrio.TemperatureLogitsWarper(0.0), "temperature=0.0 must be a number above 0"),
        (lambda: gptrio.TemperatureLogitsWarper("hot"), "temperature='hot'"),
        (lambda: gptrio.TopKLogitsWarper(0), "top_k=0 must be an integer at least 1"),
        (lambda: gptrio.TopKLogitsWarper(2.5), "top_k=2.5"),
        (lambda: gptrio.TopPLogitsWarper(1.1), "top_p=1.1 must be a number at least 0 and at most 1"),
        (lambda: gptrio.TopPLogitsWarper(0.5, min_tokens_to_keep=0), "min_tokens_to_keep=0"),
        (lambda: gptrio.MinPLogitsWarper(-0.1), "min_p=-0.1"),
        (lambda: gptrio.TypicalLogitsWarper(1.0), "typical_p=1.0"),
        (lambda: gptrio.EpsilonLogitsWarper(0), "epsilon_cutoff=0"),
        (lambda: gptrio.EtaLogitsWarper(1), "eta_cutoff=1"),
        (lambda: gptrio.RepetitionPenaltyLogitsProcessor(-1.0), "repetition_penalty=-1.0"),
        (lambda: gptrio.RepetitionPenaltyLogitsProcessor(2.0, prompt_ignore_length=-1), "prompt_ignore_length=-1"),
        (lambda: gptrio.NoRepeatNGramLogitsProcessor(0), "no_repeat_ngram_size=0"),
        (lambda: gptrio.SequenceBiasLogitsProcessor({}), "sequence_bias holds"),
        (lambda: gptrio.SequenceBiasLogitsProcessor([[[1], "much"]]), "sequence_bias="),
        (lambda: gptrio.SequenceBiasLogitsProcessor({(): 1.0}), "none empty"),
        (lambda: gptrio.NoBadWordsLogitsProcessor([]), "bad_words_ids holds"),
        (lambda: gptrio.NoBadWordsLogitsProcessor([[1], [-2]]), "bad_words_ids holds"),
        (lambda: gptrio.HammingDiversityLogitsProcessor(1.0, 2, 3), "num_beam_groups=3 is more than num_beams=2"),
        (lambda: gptrio.MinLengthLogitsProcessor(-1, 2), "min_length=-1"),
        (lambda: gptrio.MinLengthLogitsProcessor(1, []), "eos_token_id=\\[\\] must be a token id"),
        (lambda: gptrio.ForcedEOSTokenLogitsProcessor(5, -1), "forced_eos_token_id=\\[-1\\]"),
        (lambda: gptrio.ExponentialDecayLengthPenalty((1,), 2, 3), "must be two numbers"),
        (lambda: gptrio.ClassifierFreeGuidanceLogitsProcessor(1.0), "guidance_scale=1.0"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(OptionError, match=message):
        build()


def test_biased_token_outside_the_vocabulary():
    with pytest.raises(TokenIdError, match=r"tokens \[6\] .* outside the 6 scores"):
        gptrio.SequenceBiasLogitsProcessor({(6,): 1.0})(IDS, SCORES)


def test_constraint_function_that_allows_nothing():
    processor = gptrio.PrefixConstrainedLogitsProcessor(lambda prompt, ids: [], num_beams=1)
    with pytest.raises(OptionError, match="allows no token for prompt 0"):
        processor(IDS, SCORES)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"guidance_scale": 2.0}, InputError, "guidance_scale needs model="),
        ({"encoder_repetition_penalty": 2.0}, InputError, "encoder_repetition_penalty looks at the prompt's ids"),
        ({"encoder_no_repeat_ngram_size": 2}, InputError, "encoder_no_repeat_ngram_size looks at the prompt's ids"),
        ({"exponential_decay_length_penalty": (1, 2.0)}, OptionError, "needs eos_token_id"),
    ],
    ids=str,
)
def test_options_that_need_something_else(options, error, message):
    with pytest.raises(error, match=message):
        build_processors(gptrio.GenerationConfig(**options), prompt_length=3, vocab_size=6)


def test_rows_that_do_not_divide():
    processor = gptrio.EncoderRepetitionPenaltyLogitsProcessor(1.5, IDS)
    with pytest.raises(InputError, match="encoder_input_ids has 2 rows and the scores 3"):
        processor(torch.zeros(3, 2, dtype=torch.long), torch.zeros(3, 6))


class CountingModel:
    """Scores that depend on all tokens, with a cache that is the tokens so far; notes what it was given."""

    def __init__(self, vocab=6):
        self.table = torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(5))
        self.widths = []

    def __call__(self, ids, attention_mask, use_cache, past_key_values, position_ids=None):
        self.widths.append(ids.shape[1])
        seen = ids if past_key_values is None else torch.cat([past_key_values, ids], dim=1)
        assert attention_mask.shape == seen.shape
        first = seen.shape[1] - ids.shape[1]
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, first:]
        assert attention_mask.all() if position_ids is None else torch.equal(position_ids, positions)
        logits = (self.table[seen] * attention_mask[..., None]).cumsum(1)[:, first:]
        return CausalLMOutputWithPast(logits=logits, past_key_values=seen if use_cache else None)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("padded", [False, True])
def test_guidance_by_a_negative_prompt(use_cache, padded):
    model = CountingModel()
    negative = torch.tensor([[3, 4, 5], [2, 2, 1]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]]) if padded else None
    guide = gptrio.UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, model, negative, mask, use_cache)
    ids, weights = IDS, torch.ones(2, 3) if mask is None else mask
    for token in ([0, 1], [5, 3], [2, 2]):
        found = guide(ids, SCORES)
        without = (model.table[negative] * weights[..., None]).sum(1).log_softmax(-1)
        expected = without + 1.5 * (SCORES.log_softmax(-1) - without)
        torch.testing.assert_close(found, expected)
        ids = torch.cat([ids, torch.tensor(token)[:, None]], dim=1)
        negative = torch.cat([negative, ids[:, -1:]], dim=1)
        weights = torch.cat([weights, torch.ones(2, 1)], dim=1)
    assert model.widths == ([3, 1, 1] if use_cache else [3, 4, 5])


def test_guidance_starts_from_the_last_token_without_a_negative_prompt():
    model = CountingModel()
    guide = gptrio.UnbatchedClassifierFreeGuidanceLogitsProcessor(2.0, model)
    without = model.table[IDS[:, -1]].log_softmax(-1)
    torch.testing.assert_close(guide(IDS, SCORES), without + 2 * (SCORES.log_softmax(-1) - without))


def test_one_negative_prompt_serves_all_rows():
    model = CountingModel()
    guide = gptrio.UnbatchedClassifierFreeGuidanceLogitsProcessor(2.0, model, torch.tensor([[3, 4]]))
    guide(IDS, SCORES)
    assert guide(torch.cat([IDS, IDS[:, :1]], dim=1), SCORES).shape == SCORES.shape


def test_batched_guidance_names_wrong_halves():
    with pytest.raises(InputError, match="3 rows of scores for 2 rows of ids"):
        gptrio.ClassifierFreeGuidanceLogitsProcessor(2.0)(IDS, torch.zeros(3, 6))


def test_group_options_without_groups_build_nothing():
    for options in ({"diversity_penalty": 1.0}, {"num_beams": 2, "diversity_penalty": 1.0}, {"num_beam_groups": 2}):
        with pytest.warns(gptrio.GptrioWarning, match="have no effect"):
            config = gptrio.GenerationConfig(**options)
        assert not build_processors(config, prompt_length=3, vocab_size=6)


def test_unchanged_scores_are_not_copied():
    assert gptrio.MinLengthLogitsProcessor(1, 2)(IDS, SCORES) is SCORES
    assert gptrio.ForcedBOSTokenLogitsProcessor(1)(IDS, SCORES) is SCORES
    assert len(build_processors(gptrio.GenerationConfig(), prompt_length=3, vocab_size=6)) == 0
